"""How the gradients of a deformable convolution are launched on a CPU."""

from math import prod
from typing import NamedTuple

from cudakit.array import CPU, LINE_BYTES, itemsize
from cudakit.deformable.column_gradient_plan import gradient_layouts
from cudakit.deformable.column_plan import coordinates_from, plain_columns, wants_copy
from cudakit.deformable.conv_host import (
    BLOCK,
    CUT_FIELDS,
    PIXELS,
    STEP,
    Amount,
    Convolution,
    Size,
    Slots,
    choose_amount,
    images_at_once,
    join,
    with_split,
)
from cudakit.deformable.conv_host_partition import Sharing, as_given, gather, share
from cudakit.deformable.conv_host_plan import Access
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.launch import Launch, lazy_kernel
from cudakit.layout import accumulator, add_copy, add_sum, by_group, divides, packed, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import Kernel
from cudakit.structs import pack_tail


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
    """Where sums are kept before they become results."""

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
    plan, target
        What to append to, and for what.
    conv : Convolution
        The call.
    slots : Slots
        Of the arrays.
    grad_output : Slot
        Of the gradient by the output.
    results : Slots
        Of the gradients, null where they are not wanted.
    """

    def __init__(
        self, plan: Plan, target: Target, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots
    ) -> None:
        conv = as_given(gather(join(conv)), target.threads)
        self.plan, self.target, self.conv = plan, target, conv
        self.slots, self.grad_output, self.results = slots, grad_output, results
        d = conv.d
        self.item, self.wide = itemsize(d.dtype), conv.accumulator_bytes
        self.sharing = share(conv, target.threads)
        self.reads = any(slot != NULL for slot in (results.offset, results.mask, results.weight))
        self._lay_out()
        # One chunk and one dtype: the sums are the results.
        self.parted = self.sharing.parts > 1 or d.coordinates != accumulator(d.dtype)

    def _lay_out(self) -> None:
        """Choose how image and gradient lie: a tap has one offset in both."""
        d, x, results = self.conv.d, self.conv.input, self.results
        self.final, grad = gradient_layouts(d, self.target, plain_columns(d))
        beside = grad if results.input != NULL else None
        wide = accumulator(x.dtype)  # see `reading`; here it is worth a copy of bfloat16, too
        copied = self.reads and (wants_copy(x, beside, neighbours=True) or itemsize(wide) > self.item)
        summed = results.input != NULL and grad != self.final
        free = (copied or not self.reads) and (summed or results.input == NULL)
        ends = [image for image, moved in ((x, copied), (self.final, summed)) if moved]
        parts = d.groups if free and all(divides(image, d.groups) for image in ends) else 1
        layout = packed(by_group(x, parts).shape, wide, channels_last=True) if copied or not self.reads else x
        self.image = Access(layout, parts, copied)
        self.grad = Access(packed(by_group(grad, parts).shape, grad.dtype, channels_last=True), parts, summed)

    def run(self) -> None:
        """Append all launches."""
        self.sharing = self._affordable()
        if self.conv.joined == 1:
            self.conv = with_split(self.conv, self._size)
        conv, results = self.conv, self.results
        amount = self._amount()
        buffers = self._buffers(amount)
        for first in range(0, conv.d.batch, amount.images):
            self._round(first, min(amount.images, conv.d.batch - first), amount, buffers)
        if results.weight != NULL and conv.given and buffers.packed != results.weight:
            sums, goal = (buffers.packed, accumulator(conv.d.dtype)), (results.weight, conv.d.dtype)
            add_sum(self.plan, self.target, sums, goal, (conv.weights, 1, 1), (1, 0, 0))
        elif results.weight != NULL and not conv.given:
            pointers = Pointers(packed=buffers.packed, grad_weight=results.weight)
            self._launch(UNPACK, conv.d, amount, conv.panels, conv.packed_size(self.sharing.block), pointers)

    def _affordable(self) -> Sharing:
        """Return how to share out the work: by pixels only where the caller allows the memory that this takes."""
        limit = self.conv.workspace
        if limit is None or self._size(self.conv).of(Amount(self._workers, 1, 1)) <= limit:
            return self.sharing
        return self.sharing._replace(spans=1)

    @property
    def _workers(self) -> int:
        """Threads that find work."""
        return min(self.target.threads, self.sharing.items(self.conv.d))

    @property
    def _image_sums(self) -> int:
        """How many gradients of an image there are besides the result."""
        wanted = self.results.input != NULL and self.sharing.spans > 1
        return self.sharing.spans if wanted else int(self.grad.copied)

    def _image_bytes(self) -> int:
        """Return the temporary memory of one image."""
        d, results = self.conv.d, self.results
        size = d.channels * prod(d.space)
        shared = (results.offset, d.offset_channels), (results.mask, d.mask_channels)
        parts = sum(channels for slot, channels in shared if slot != NULL and self.parted)
        return (
            size * itemsize(self.image.layout.dtype) * self.image.copied
            + size * self.wide * self._image_sums
            + self.sharing.parts * parts * d.pixels * self.wide
        )

    def _scratch(self, conv: Convolution) -> int:
        """Return the numbers of one worker: a tile, and a chunk's weights as the kernel packs them (`scratch_of`)."""
        block, outputs = self.sharing.block, conv.out_channels // (conv.groups * conv.joined)
        if conv.given:
            return 2 * conv.tile_size + (block * conv.d.taps * outputs if self.item < self.wide else 0)
        panel = conv.padded // max(1, conv.panels // conv.groups)
        pieces = -(-conv.d.taps // max(1, BLOCK // block)) * (block // (conv.d.channels // conv.groups) + 2)
        weights = conv.d.taps * block + panel * pieces
        line = LINE_BYTES // self.wide
        split = 0
        if conv.split.data:
            split = PIXELS * (BLOCK * conv.split.values // 2 + conv.groups * conv.padded * conv.split.data)
            split += weights * -(-outputs // STEP) * STEP * conv.split.data // 2
        return conv.tile_size + split + -(-weights * outputs // line) * line

    def _adds_to_weights(self, conv: Convolution) -> bool:
        """Return whether the sums of the weights' gradients are the result."""
        return conv.given and self.item == self.wide

    def _size(self, conv: Convolution) -> Size:
        """Return the temporary memory of a call."""
        numbers = conv.weights if conv.given else conv.packed_size(self.sharing.block) * self.sharing.spans
        packed_bytes = numbers * self.wide if self.results.weight != NULL and not self._adds_to_weights(conv) else 0
        return Size(0, self._scratch(conv) * self.wide, packed_bytes, self._image_bytes())

    def _amount(self) -> Amount:
        slots = self.sharing.slots
        images = images_at_once(self.conv.d.batch, self._image_bytes(), slots)
        return choose_amount(self.conv, Amount(self._workers, slots, images), self._size(self.conv))

    def _buffers(self, amount: Amount) -> Buffers:
        plan, d, results, size = self.plan, self.conv.d, self.results, self._size(self.conv)
        image = d.channels * prod(d.space) * amount.images
        parts = self.sharing.parts * d.pixels * amount.images * self.wide
        return Buffers(
            plan.workspace(image * itemsize(self.image.layout.dtype)) if self.image.copied else NULL,
            plan.workspace(image * self.wide * self._image_sums) if self._image_sums else NULL,
            plan.workspace(parts * d.offset_channels) if self.parted and results.offset != NULL else NULL,
            plan.workspace(parts * d.mask_channels) if self.parted and results.mask != NULL else NULL,
            plan.workspace(size.slot * amount.slots) if size.slot else results.weight,
            plan.workspace(size.worker * amount.workers),
        )

    def _round(self, first: int, count: int, amount: Amount, buffers: Buffers) -> None:
        """Append what is done for some images of the batch."""
        plan, target, conv, results = self.plan, self.target, self.conv, self.results
        d, x = conv.d, conv.input
        source = self.slots.input.at(first * x.strides[0] * self.item) if self.reads else NULL
        parts = self.image.parts
        if self.image.copied:
            old, new = by_group(part(x, count), parts), part(self.image.layout, count * parts)
            add_copy(plan, target, (source, old), (buffers.image, new))
        goal = results.input.at(first * self.final.strides[0] * self.item)
        offset, mask = coordinates_from(d, first, self.slots.offset, self.slots.mask)
        grads = coordinates_from(d, first, results.offset, results.mask)
        part_offset, part_mask = (buffers.offset, buffers.mask) if self.parted else grads
        pointers = Pointers(
            self.grad_output.at(first * conv.output.strides[0] * self.item),
            *(buffers.image if self.image.copied else source, offset, mask, self.slots.weight),
            grad_input=buffers.grad_input if self._image_sums else goal,
            part_offset=part_offset,
            part_mask=part_mask,
            packed=buffers.packed,
            scratch=buffers.scratch,
        )
        some, work = amount._replace(slots=min(amount.slots, count)), 2 * count * conv.work
        items = self.sharing._replace(slots=some.slots).items(d)
        self._launch(BACKWARD, d.part(count), some, items, work, pointers, opens=first == 0)
        if self.parted:
            for grad, sums, channels in zip(
                grads, (buffers.offset, buffers.mask), (d.offset_channels, d.mask_channels), strict=True
            ):
                self._add_parts(grad, sums, count * channels * d.pixels)
        if self._image_sums > 1:
            self._add_spans(buffers.grad_input if self.grad.copied else goal, buffers.grad_input, count, amount)
        if self.grad.copied:
            old, new = part(self.grad.layout, count * parts), by_group(part(self.final, count), parts)
            add_copy(plan, target, (buffers.grad_input, old), (goal, new))

    def _span_stride(self, amount: Amount) -> int:
        """Return the numbers from the images that one span adds to, to those of the next."""
        return self.conv.d.channels * prod(self.conv.d.space) * amount.images

    def _add_spans(self, grad: Slot, sums: Slot, count: int, amount: Amount) -> None:
        """Append the sums over spans of the gradients of so many images."""
        size, dtype = count * self.conv.d.channels * prod(self.conv.d.space), self.grad.layout.dtype
        strides = (1, 0, self._span_stride(amount))
        add_sum(self.plan, self.target, (sums, dtype), (grad, dtype), (size, 1, self.sharing.spans), strides)

    def _add_parts(self, grad: Slot, sums: Slot, size: int) -> None:
        """Append the sums over chunks of a group, for a gradient of so many numbers."""
        if grad != NULL:
            source, goal = (sums, accumulator(self.conv.d.dtype)), (grad, self.conv.d.coordinates)
            add_sum(self.plan, self.target, source, goal, (size, 1, self.sharing.parts), (1, 0, size))

    def _launch(
        self,
        kernel: Kernel,
        d: Deformation,
        amount: Amount,
        items: int,
        work: int,
        pointers: Pointers,
        opens: bool = False,
    ) -> None:
        conv, block = self.conv, self.sharing.block
        tail = pack_tail(
            *(kernel, items, amount.slots, self.sharing.spans, self._span_stride(amount), int(opens)),
            *(conv.packed_size(block), self.image.group_stride(d)),
            *(conv.output.pixel_strides, self.grad.strides),
            *(*conv.cut(block), self._scratch(conv)),
            *geometry_values(d, self.image.strides),
        )
        loaded = lazy_kernel(kernel, conv.prelude(self.image.layout, block), CPU)
        self.plan.launch(Launch(loaded, tail, items, 1, work, amount.workers), *pointers)


def plan_backward(
    plan: Plan, target: Target, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots
) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    _Backward(plan, target, conv, slots, grad_output, results).run()
