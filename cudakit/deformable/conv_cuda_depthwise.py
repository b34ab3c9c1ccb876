"""How a deformable convolution whose channels are groups of their own is launched on a GPU, without columns."""

from collections.abc import Iterator
from typing import NamedTuple

from cudakit import checks
from cudakit.arithmetic import ceil_div
from cudakit.array import itemsize
from cudakit.deformable.column_gradient_plan import Col2imSlots, add_gradients
from cudakit.deformable.column_plan import (
    Columns,
    Form,
    choose_form,
    constants,
    coordinates_from,
    wants_copy,
    wants_neighbours,
)
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.deformable.conv_cuda_input_gradient import InputGradient
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.layout import (
    CUDA_THREADS,
    Image,
    accumulator,
    add_copy,
    add_sum,
    cuda_lanes,
    cuda_vector,
    packed,
)
from cudakit.plan import NULL, Plan, Slot
from cudakit.rounding import anchor_bytes
from cudakit.source import Kernel
from cudakit.staging import CUDA_COPY_BYTES, Staged
from cudakit.workspace import ALIGNMENT

MOST_WORKSPACES = 7  # of a call
FEWEST_PIXELS = 4  # of a thread that adds up gradients of weights


class _Pointers(NamedTuple):
    """The slots of both kernels, in the order of their parameters; `output` may be its gradient's."""

    input: Slot
    offset: Slot
    mask: Slot
    weight: Slot = NULL
    bias: Slot = NULL
    output: Slot = NULL
    sums: Slot = NULL


FIELDS = (
    *((name, 1) for name in _Pointers._fields),
    *((name, 1) for name in ("items", "blocks", "chunks", "opens")),
    ("output_stride", 3),
    *GEOMETRY_FIELDS,
)
FORWARD, WEIGHTS = (
    Kernel("deform_depthwise.cu", name, "DepthwiseParams", FIELDS, pointers=len(_Pointers._fields))
    for name in ("deform_depthwise", "deform_depthwise_weights")
)


def _as_columns(y: Image) -> Columns:
    """Return an output's layout as that of columns which all taps share."""
    return Columns((y.strides[0], y.strides[1], 0, y.strides[-1]), y.shape[1])


class _DepthwiseCall:
    """What the launches of one call share.

    Parameters
    ----------
    plan : Plan
        What to append to.
    conv : Convolution
        The call.
    slots : Slots
        Of its arrays.
    reads : bool
        Whether the input is read.
    grad : Image, optional
        How the gradient of the input is added up, where it is wanted.
    image_bytes, fixed_bytes : int
        Temporary memory besides what is copied, for an image and for all.
    """

    def __init__(
        self,
        plan: Plan,
        conv: Convolution,
        slots: Slots,
        *,
        reads: bool = True,
        grad: Image | None = None,
        image_bytes: int = 0,
        fixed_bytes: int = 0,
    ) -> None:
        self.plan, self.conv, self.slots = plan, conv, slots
        d, x, y = conv.d, conv.input, conv.output
        self.item_bytes = itemsize(d.dtype)
        last = packed(y.shape, d.dtype, channels_last=True)
        self.vector = cuda_vector(d.channels // d.offset_groups, d.dtype)
        self.in_vectors = wants_neighbours(d, _as_columns(last), plan.target)
        apart = wants_copy(x, grad, neighbours=False)
        image = packed(x.shape, d.dtype, channels_last=d.channels_last or self.in_vectors)
        copied, turned = reads and (apart or self._scattered(x)), self._scattered(y)
        image_bytes += (image.strides[0] * copied + last.strides[0] * turned) * self.item_bytes
        weight_bytes = d.channels * d.taps * self.item_bytes
        self.images = self._images(image_bytes, fixed_bytes + MOST_WORKSPACES * ALIGNMENT + weight_bytes)
        self.inputs = Staged(plan, x if reads else image, image if copied else None, self.images)
        self.outputs = Staged(plan, y, last if turned else None, self.images)
        self.weight = plan.workspace(weight_bytes)
        source, goal = self.weight_layouts
        add_copy(plan, (slots.weight, source), (self.weight, goal))

    def _scattered(self, one: Image) -> bool:
        """Whether channels should be read in vectors, and are not where that is possible."""
        return self.in_vectors and not (one.strides[1] == 1 and one.in_vectors(self.vector))

    def _images(self, image_bytes: int, fixed: int) -> int:
        """Return how many images are visited at a time."""
        limit, batch = self.conv.workspace, self.conv.d.batch
        checks.workspace(limit, fixed + image_bytes)
        if not image_bytes:
            return batch
        room = CUDA_COPY_BYTES if limit is None else min(CUDA_COPY_BYTES, limit - fixed)
        return min(batch, max(1, room // image_bytes))

    @property
    def weight_layouts(self) -> tuple[Image, Image]:
        """Weights as an image with taps for pixels: as the caller has them, and with the channel fastest."""
        shape, dtype = (1, self.conv.d.channels, self.conv.d.taps), self.conv.d.dtype
        return packed(shape, dtype, channels_last=False), packed(shape, dtype, channels_last=True)

    def rounds(self) -> Iterator[tuple[int, int, Slot]]:
        """Yield (first image, images, slot of these images) after appending their copy."""
        for first, count in self.inputs.rounds(self.slots.input, self.conv.d.batch):
            yield first, count, self.inputs.at(self.slots.input, first)

    def form(self, places: int) -> Form:
        """Return how threads share out the channels of so many places."""
        d = self.conv.d
        count = d.channels // d.offset_groups
        form = choose_form(d, self.inputs.layout, _as_columns(self.outputs.layout), self.plan.target, count)
        return form if form.vector == 1 else form._replace(lanes=cuda_lanes(count, form.vector, places))

    def launch(
        self,
        kernel: Kernel,
        form: Form,
        places: int,
        d: Deformation,
        pointers: _Pointers,
        *,
        chunks: int = 1,
        opens: bool = True,
    ) -> None:
        """Append a launch that visits so many places in blocks of channels."""
        blocks = self.blocks(form)
        items = places * blocks * d.offset_groups
        x, y = self.inputs.layout, self.outputs.layout.with_batch(d.batch)
        sizes = (items * form.lanes, chunks * d.taps * d.channels)
        defined = constants(d, form, (x.extent, y.extent), *sizes)
        values = (blocks, chunks, int(opens), y.pixel_strides, *geometry_values(d, x.strides))
        work = d.batch * d.channels * d.taps * d.pixels
        self.plan.launch(kernel, defined, pointers, items, values, work=work)

    def blocks(self, form: Form) -> int:
        """Return in how many blocks the channels of an offset group come."""
        return ceil_div(self.conv.d.channels, self.conv.d.offset_groups * form.lanes * form.vector)


def plan_forward(plan: Plan, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    call = _DepthwiseCall(plan, conv, slots)
    d = conv.d
    for first, count, image in call.rounds():
        offset, mask = coordinates_from(d, first, slots.offset, slots.mask)
        places = count * d.pixels
        to = call.outputs.at(output, first)
        pointers = _Pointers(image, offset, mask, weight=call.weight, bias=slots.bias, output=to)
        call.launch(FORWARD, call.form(places), places, d.with_batch(count), pointers)
        call.outputs.move(output, first, count, back=True)


class _Backward:
    """Appends the gradients of one call; `results` are the slots of the gradients, null where not wanted."""

    def __init__(self, plan: Plan, conv: Convolution, slots: Slots, grad: Slot, results: Slots) -> None:
        d = conv.d
        self.grad_output, self.results = grad, results
        last = _as_columns(packed(conv.output.shape, d.dtype, channels_last=True))
        self.by_input = InputGradient(plan.target, conv, last, results.input)
        self.slopes = results.offset != NULL or results.mask != NULL
        self.sum_bytes = d.channels * d.taps * itemsize(accumulator(d.dtype))
        weights = (self.sum_bytes + d.channels * d.taps * itemsize(d.dtype)) * (results.weight != NULL)
        self.call = call = _DepthwiseCall(
            *(plan, conv, slots),
            reads=self.slopes or results.weight != NULL,
            grad=None if results.input == NULL else self.by_input.layout,
            image_bytes=self.by_input.image_bytes,
            fixed_bytes=weights + anchor_bytes(plan.target),
        )
        self.by_input.allocate(plan, call.images, slots, grad)
        if weights:
            self.totals = plan.workspace(weights - self.sum_bytes)
            self.form = call.form(d.taps * ceil_div(call.images * d.pixels, FEWEST_PIXELS))
            self.chunks = self._chunks()
            self.sums = plan.workspace(self.chunks * self.sum_bytes)

    def _chunks(self) -> int:
        """Return in how many chunks the pixels of a round are, each with sums of its own."""
        call, d = self.call, self.call.conv.d
        most = ceil_div(call.images * d.pixels, FEWEST_PIXELS)
        if call.conv.workspace is not None:
            room = call.conv.workspace - call.plan.taken
            most = min(most, room // ALIGNMENT * ALIGNMENT // self.sum_bytes)
        return min(most, ceil_div(CUDA_THREADS, d.taps * d.offset_groups * call.blocks(self.form) * self.form.lanes))

    def run(self) -> None:
        """Append all launches."""
        call = self.call
        for first, count, image in call.rounds():
            call.outputs.move(self.grad_output, first, count)
            grad = call.outputs.at(self.grad_output, first)
            if self.slopes or self.results.input != NULL:
                self._add_gradients(first, count, image, grad)
            if self.results.weight != NULL:
                offset, mask = coordinates_from(call.conv.d, first, call.slots.offset, call.slots.mask)
                pointers = _Pointers(image, offset, mask, output=grad, sums=self.sums)
                places, d = self.chunks * call.conv.d.taps, call.conv.d.with_batch(count)
                call.launch(WEIGHTS, self.form, places, d, pointers, chunks=self.chunks, opens=first == 0)
        if self.results.weight != NULL:
            self._add_up()

    def _add_gradients(self, first: int, count: int, image: Slot, grad_output: Slot) -> None:
        """Append the gradients of a round by the input, offsets and masks."""
        call, results, d = self.call, self.results, self.call.conv.d
        coordinates = coordinates_from(d, first, call.slots.offset, call.slots.mask)
        grads = coordinates_from(d, first, results.offset, results.mask)
        slots = Col2imSlots(
            *(image if self.slopes else NULL, *coordinates, grad_output),
            weight=call.weight,
            grad_input=self.by_input.total.begin(first, count),
            grad_offset=grads[0],
            grad_mask=grads[1],
            anchors=self.by_input.anchors,
        )
        y = call.outputs.layout.with_batch(count)
        layouts = (call.inputs.layout.with_batch(count), self.by_input.layout.with_batch(count), _as_columns(y))
        add_gradients(call.plan, d.with_batch(count), *layouts, slots, self.by_input.accumulation)
        self.by_input.total.end(first, count)

    def _add_up(self) -> None:
        """Append the weights' gradients from the sums of chunks."""
        call, d = self.call, self.call.conv.d
        size, limit = d.taps * d.channels, call.conv.workspace
        room = None if limit is None else limit - call.plan.taken
        source, goal = (self.sums, accumulator(d.dtype)), (self.totals, d.dtype)
        add_sum(call.plan, source, goal, (size, 1, self.chunks), (1, 0, size), room=room)
        layout, packed_layout = call.weight_layouts
        add_copy(call.plan, (self.totals, packed_layout), (self.results.weight, layout))


def plan_backward(plan: Plan, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    _Backward(plan, conv, slots, grad_output, results).run()
