"""How the gradients of a deformable convolution are launched on a CPU."""

from math import prod
from typing import NamedTuple

from cudakit.arithmetic import ceil_div, round_up
from cudakit.array import LINE_BYTES, itemsize
from cudakit.deformable.column_gradient_plan import gradient_layouts
from cudakit.deformable.column_plan import coordinates_from, plain_columns, wants_copy
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.deformable.conv_host import BLOCK, CUT_FIELDS, PIXELS, STEP, HostConvolution, join_groups, with_split
from cudakit.deformable.conv_host_memory import (
    LEAST,
    Concurrency,
    Footprint,
    choose_concurrency,
    fits,
    images_per_round,
)
from cudakit.deformable.conv_host_partition import Partition, choose_partition, join_for_gradients, with_given_weights
from cudakit.deformable.conv_host_plan import Storage
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.layout import accumulator, add_copy, add_sum, packed
from cudakit.plan import NULL, Plan, Slot
from cudakit.source import Kernel


class Pointers(NamedTuple):
    """The slots of both kernels, in the order of their parameters."""

    grad_output: Slot = NULL
    input: Slot = NULL
    offset: Slot = NULL
    mask: Slot = NULL
    weight: Slot = NULL
    grad_input: Slot = NULL
    part_offset: Slot = NULL
    part_mask: Slot = NULL
    packed: Slot = NULL
    grad_weight: Slot = NULL
    scratch: Slot = NULL


FIELDS = (
    *((name, 1) for name in Pointers._fields),
    *((name, 1) for name in ("items", "image_sets", "spans", "span_stride", "opens", "packed_size", "group_stride")),
    *(("output_stride", 3), ("grad_stride", 5)),
    *CUT_FIELDS,
    *GEOMETRY_FIELDS,
)
BACKWARD, UNPACK = (
    Kernel("deform_conv_backward.cu", name, "DeformConvBackwardParams", FIELDS, pointers=len(Pointers._fields))
    for name in ("deform_conv_backward", "deform_conv_unpack")
)


class Buffers(NamedTuple):
    """Where sums are kept before they become results, and what threads have for themselves."""

    image: Slot
    grad_input: Slot
    offset: Slot
    mask: Slot
    packed: Slot
    scratch: Slot


class _Backward:
    """Appends the launches of one call.

    Parameters
    ----------
    plan : Plan
        What to append to.
    call : Convolution
        The call.
    slots : Slots
        Of the arrays.
    grad_output : Slot
        Of the gradient by the output.
    results : Slots
        Of the gradients, null where they are not wanted.
    """

    def __init__(self, plan: Plan, call: Convolution, slots: Slots, grad_output: Slot, results: Slots) -> None:
        threads = plan.target.threads
        joined = join_for_gradients(join_groups(HostConvolution.of(call)))
        self.conv = conv = with_given_weights(joined, threads)
        self.plan, self.slots, self.grad_output, self.results = plan, slots, grad_output, results
        d = conv.d
        self.item_bytes, self.sum_bytes = itemsize(d.dtype), conv.accumulator_bytes
        self.image_size = d.channels * prod(d.space)
        self.partition = choose_partition(conv, threads)
        self.reads = any(slot != NULL for slot in (results.offset, results.mask, results.weight))
        self._choose_storage()
        # One chunk and one dtype: the sums are the results.
        self.sums_chunks = self.partition.chunks > 1 or d.coordinate_dtype != accumulator(d.dtype)

    def _choose_storage(self) -> None:
        """Choose how image and gradient lie: a tap has one offset in both."""
        d, x, results = self.conv.d, self.conv.input, self.results
        self.final, grad = gradient_layouts(d, self.plan.target, plain_columns(d))
        beside = grad if results.input != NULL else None
        wide = accumulator(x.dtype)  # see `choose_storage`; here it is worth a copy of bfloat16, too
        copied = self.reads and (wants_copy(x, beside, neighbours=True) or itemsize(wide) > self.item_bytes)
        summed = results.input != NULL and grad != self.final
        free = (copied or not self.reads) and (summed or results.input == NULL)
        ends = [image for image, moved in ((x, copied), (self.final, summed)) if moved]
        groups = d.offset_groups if free and all(image.may_split_groups(d.offset_groups) for image in ends) else 1
        layout = packed(x.split_groups(groups).shape, wide, channels_last=True) if copied or not self.reads else x
        self.image = Storage(layout, groups, copied)
        self.grad = Storage(packed(grad.split_groups(groups).shape, grad.dtype, channels_last=True), groups, summed)

    def run(self) -> None:
        """Append all launches."""
        self.partition = self._affordable_partition()
        if self.conv.joined == 1:
            self.conv = with_split(self.conv, self._footprint)
        conv, results = self.conv, self.results
        concurrency = self._concurrency()
        buffers = self._buffers(concurrency)
        for first in range(0, conv.d.batch, concurrency.images_per_round):
            count = min(concurrency.images_per_round, conv.d.batch - first)
            self._add_round(first, count, concurrency, buffers)
        if results.weight != NULL and conv.given_weights and buffers.packed != results.weight:
            sums, goal = (buffers.packed, accumulator(conv.d.dtype)), (results.weight, conv.d.dtype)
            add_sum(self.plan, sums, goal, (conv.weights, 1, 1), (1, 0, 0))
        elif results.weight != NULL and not conv.given_weights:
            pointers = Pointers(packed=buffers.packed, grad_weight=results.weight)
            work = conv.packed_size(self.partition.chunk_channels)
            self._launch(UNPACK, conv.d, concurrency, conv.panels, work, pointers)

    def _affordable_partition(self) -> Partition:
        """Return how to share out the work: by pixels only where the caller allows the memory that this takes."""
        if fits(self._footprint(self.conv), LEAST._replace(threads=self._threads), self.conv.workspace):
            return self.partition
        return self.partition._replace(spans=1)

    @property
    def _threads(self) -> int:
        """Those that find work."""
        return min(self.plan.target.threads, self.partition.items(self.conv.d))

    @property
    def _image_sums(self) -> int:
        """How many gradients of an image there are besides the result."""
        wanted = self.results.input != NULL and self.partition.spans > 1
        return self.partition.spans if wanted else int(self.grad.copied)

    def _image_bytes(self) -> int:
        """Return the temporary memory of one image."""
        d, results = self.conv.d, self.results
        summed = (results.offset, d.offset_channels), (results.mask, d.mask_channels)
        channels = sum(channels for slot, channels in summed if slot != NULL and self.sums_chunks)
        return (
            self.image_size * itemsize(self.image.layout.dtype) * self.image.copied
            + self.image_size * self.sum_bytes * self._image_sums
            + self.partition.chunks * channels * d.pixels * self.sum_bytes
        )

    def _scratch(self, conv: HostConvolution) -> int:
        """Return the numbers of one thread: a tile, and a chunk's weights as the kernel packs them (`scratch_of`)."""
        channels, outputs = self.partition.chunk_channels, conv.out_channels // conv.groups
        if conv.given_weights:
            widened = channels * conv.d.taps * outputs if self.item_bytes < self.sum_bytes else 0
            return 2 * conv.tile_size + widened
        panel = conv.padded_outputs // max(1, conv.panels // conv.joined_groups)
        per_group = conv.d.channels // conv.joined_groups
        pieces = ceil_div(conv.d.taps, max(1, BLOCK // channels)) * (channels // per_group + 2)
        weights = conv.d.taps * channels + panel * pieces
        line = LINE_BYTES // self.sum_bytes
        split, parts = 0, conv.split
        if parts.array_parts:
            split = PIXELS * (BLOCK * parts.column_parts // 2)
            split += PIXELS * conv.joined_groups * conv.padded_outputs * parts.array_parts
            split += weights * round_up(outputs, STEP) * parts.array_parts // 2
        return conv.tile_size + split + round_up(weights * outputs, line)

    def _adds_to_result(self, conv: HostConvolution) -> bool:
        """Return whether the sums of the weights' gradients are the result."""
        return conv.given_weights and self.item_bytes == self.sum_bytes

    def _footprint(self, conv: HostConvolution) -> Footprint:
        """Return the temporary memory of a call."""
        partition = self.partition
        numbers = conv.weights if conv.given_weights else conv.packed_size(partition.chunk_channels) * partition.spans
        apart = self.results.weight != NULL and not self._adds_to_result(conv)
        return Footprint(0, self._scratch(conv) * self.sum_bytes, numbers * self.sum_bytes * apart, self._image_bytes())

    def _concurrency(self) -> Concurrency:
        sets = self.partition.image_sets
        images = images_per_round(self.conv.d.batch, self._image_bytes(), sets)
        most = Concurrency(self._threads, sets, images)
        return choose_concurrency(most, self._footprint(self.conv), self.conv.workspace)

    def _buffers(self, concurrency: Concurrency) -> Buffers:
        plan, d, results, footprint = self.plan, self.conv.d, self.results, self._footprint(self.conv)
        image = self.image_size * concurrency.images_per_round
        chunks = self.partition.chunks * d.pixels * concurrency.images_per_round * self.sum_bytes
        return Buffers(
            plan.workspace(image * itemsize(self.image.layout.dtype)) if self.image.copied else NULL,
            plan.workspace(image * self.sum_bytes * self._image_sums) if self._image_sums else NULL,
            plan.workspace(chunks * d.offset_channels) if self.sums_chunks and results.offset != NULL else NULL,
            plan.workspace(chunks * d.mask_channels) if self.sums_chunks and results.mask != NULL else NULL,
            plan.workspace(footprint.per_image_set * concurrency.image_sets)
            if footprint.per_image_set
            else results.weight,
            plan.workspace(footprint.per_thread * concurrency.threads),
        )

    def _add_round(self, first: int, count: int, concurrency: Concurrency, buffers: Buffers) -> None:
        """Append what is done for `count` images of the batch from the `first` on."""
        conv, d, results = self.conv, self.conv.d, self.results
        source = self.slots.input.at(first * conv.input.strides[0] * self.item_bytes) if self.reads else NULL
        if self.image.copied:
            old = conv.input.with_batch(count).split_groups(self.image.groups)
            new = self.image.layout.with_batch(count * self.image.groups)
            add_copy(self.plan, (source, old), (buffers.image, new))
        goal = results.input.at(first * self.final.strides[0] * self.item_bytes)
        offset, mask = coordinates_from(d, first, self.slots.offset, self.slots.mask)
        grads = coordinates_from(d, first, results.offset, results.mask)
        part_offset, part_mask = (buffers.offset, buffers.mask) if self.sums_chunks else grads
        pointers = Pointers(
            self.grad_output.at(first * conv.output.strides[0] * self.item_bytes),
            *(buffers.image if self.image.copied else source, offset, mask, self.slots.weight),
            grad_input=buffers.grad_input if self._image_sums else goal,
            part_offset=part_offset,
            part_mask=part_mask,
            packed=buffers.packed,
            scratch=buffers.scratch,
        )
        some = concurrency._replace(image_sets=min(concurrency.image_sets, count))
        items = self.partition._replace(image_sets=some.image_sets).items(d)
        self._launch(BACKWARD, d.with_batch(count), some, items, 2 * count * conv.work, pointers, opens=first == 0)
        if self.sums_chunks:
            self._sum_chunks(grads[0], buffers.offset, count * d.offset_channels * d.pixels)
            self._sum_chunks(grads[1], buffers.mask, count * d.mask_channels * d.pixels)
        self._finish_grad_input(goal, count, concurrency, buffers)

    def _finish_grad_input(self, goal: Slot, count: int, concurrency: Concurrency, buffers: Buffers) -> None:
        """Append what brings the gradients of `count` images from their sums to where they are wanted."""
        if self._image_sums > 1:
            self._sum_spans(buffers.grad_input if self.grad.copied else goal, buffers.grad_input, count, concurrency)
        if self.grad.copied:
            old = self.grad.layout.with_batch(count * self.grad.groups)
            new = self.final.with_batch(count).split_groups(self.grad.groups)
            add_copy(self.plan, (buffers.grad_input, old), (goal, new))

    def _span_stride(self, concurrency: Concurrency) -> int:
        """Return the numbers from the images that one span adds to, to those of the next."""
        return self.image_size * concurrency.images_per_round

    def _sum_spans(self, grad: Slot, sums: Slot, count: int, concurrency: Concurrency) -> None:
        """Append the sums over spans of the gradients of `count` images."""
        size, dtype = count * self.image_size, self.grad.layout.dtype
        strides = (1, 0, self._span_stride(concurrency))
        add_sum(self.plan, (sums, dtype), (grad, dtype), (size, 1, self.partition.spans), strides)

    def _sum_chunks(self, grad: Slot, sums: Slot, size: int) -> None:
        """Append the sums over chunks of a group's channels, for a gradient of `size` numbers, if it is wanted."""
        if grad != NULL:
            source, goal = (sums, accumulator(self.conv.d.dtype)), (grad, self.conv.d.coordinate_dtype)
            add_sum(self.plan, source, goal, (size, 1, self.partition.chunks), (1, 0, size))

    def _launch(
        self,
        kernel: Kernel,
        d: Deformation,
        concurrency: Concurrency,
        items: int,
        work: int,
        pointers: Pointers,
        opens: bool = False,
    ) -> None:
        conv, channels = self.conv, self.partition.chunk_channels
        values = (
            *(concurrency.image_sets, self.partition.spans, self._span_stride(concurrency), int(opens)),
            *(conv.packed_size(channels), self.image.group_stride(d)),
            *(conv.output.pixel_strides, self.grad.strides),
            *conv.cut_values(channels, self._scratch(conv)),
            *geometry_values(d, self.image.strides),
        )
        constants = conv.constants(self.image.layout, channels)
        self.plan.launch(kernel, constants, pointers, items, values, work=work, threads=concurrency.threads)


def plan_backward(plan: Plan, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    _Backward(plan, conv, slots, grad_output, results).run()
