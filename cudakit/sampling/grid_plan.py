"""How the spatial transformer's operators are launched: which form of a kernel, on which layout, in which pieces.

An image of many channels that comes channels-first is copied to channels-last in between, which costs less than it
saves.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, itemsize
from cudakit.layout import Image, cuda_block, is_wide, packed
from cudakit.plan import NULL, Output, Plan, Slot, Target
from cudakit.rounding import add_anchors, rounded_parts, sum_dtype
from cudakit.sampling.grid_ahead import is_near, next_lines
from cudakit.sampling.grid_form import MODE_CONSTANTS, TAPS, Form, choose_form, row_window, shares_of
from cudakit.source import Kernel, type_constants
from cudakit.staging import Staged, Summed, images_at_a_time
from cudakit.structs import inverses

MANY_CHANNELS = {"nearest": 32, "bilinear": 16, "bicubic": 16}  # from here on channels-first is copied to channels-last


class Pointers(NamedTuple):
    """The slots of a sampling kernel, in the order of its parameters."""

    input: Slot = NULL
    grid: Slot = NULL
    output: Slot = NULL
    grad_output: Slot = NULL
    grad_input: Slot = NULL
    grad_grid: Slot = NULL
    anchors: Slot = NULL


SAMPLE_FIELDS = (
    *((name, 1) for name in Pointers._fields),
    *((name, 1) for name in ("items", "batch", "channels", "channel_block", "slabs", "pixels")),
    *((name, 1) for name in ("align_corners", "looks_ahead", "next_lines")),
    *(
        ("size", 3),
        ("input_stride", 5),
        ("output_stride", 3),
        ("grad_stride", 5),
        ("inverse_pixels", 1),
        ("inverse_batch", 1),
    ),
)
SAMPLE_KERNELS = {
    name: Kernel("grid_sample.cu", name, "GridSampleParams", SAMPLE_FIELDS, pointers=len(Pointers._fields))
    for name in (
        "grid_sample_planar",
        "grid_sample_planar_backward",
        "grid_sample_channels",
        "grid_sample_channels_backward",
    )
}


class Sampling(NamedTuple):
    """One call of `grid_sample` or its gradients, checked."""

    input: Image
    pixels: int  # of the output
    grid_dtype: str
    mode: str
    padding_mode: str
    align_corners: bool

    @property
    def taps(self) -> int:
        """Input pixels that one sample reads."""
        taps: int = TAPS[self.mode] ** len(self.input.space)
        return taps

    @property
    def terms(self) -> int:
        """Numbers that are added to an element of the input's gradient at most."""
        return self.pixels * self.taps


def sample_values(
    call: Sampling,
    output: Image,
    grad: Image | None,
    *,
    block: int,
    slabs: int = 1,
    looks_ahead: bool = False,
    lines: int = 0,
) -> tuple[int | tuple[int, ...], ...]:
    """Return the values of `SAMPLE_FIELDS` after the items."""
    x = call.input
    return (
        *(*x.shape[:2], block, slabs, call.pixels),
        *(int(call.align_corners), int(looks_ahead), lines),
        *(x.space, x.strides, output.pixel_strides, grad.strides if grad else ()),
        *inverses(call.pixels, x.shape[0]),
    )


def add_sampling(
    plan: Plan,
    call: Sampling,
    form: Form,
    pointers: Pointers,
    output: Image,
    grad: Image | None = None,
    shares: int = 1,
) -> None:
    """Append a sampling kernel.

    `output` is the layout of the output or of its gradient, `grad` that of the gradient of the input. The latter makes
    the pixels of an image belong together, so that no two CPU threads add to one target; there may be so many `shares`
    of it: slabs of an image, or, as a line cannot be cut without cutting rows of taps, channels.
    """
    target = plan.target
    x = call.input
    slabs, block = _cut(call, form, pointers, target, shares)
    blocks = ceil_div(x.shape[1], block) if block else 1
    form = form._replace(group=max(1, min(form.group, block)))
    tiles = ceil_div(call.pixels, form.tile)
    items = blocks * slabs * x.shape[0] * tiles
    near, forward = is_near([x, grad] if grad else [x]), pointers.output != NULL
    large = form.channels and target.bypasses_cache(pointers.output)  # a few planes are written as fast as copies
    wide = _is_wide(call, output, grad, items * form.lanes)
    constants = type_constants(x.dtype, call.grid_dtype, wide, large) | _constants(call, form, target)
    constants |= {"SLABS": int(slabs > 1), "NEAR": int(constants["WINDOW"] and near and forward)}
    if pointers.anchors != NULL:
        constants["ROUNDED"] = rounded_parts(x.dtype, target, call.terms)
    name = f"grid_sample_{'channels' if form.channels else 'planar'}"
    kernel = SAMPLE_KERNELS[name + ("" if forward else "_backward")]
    lines = next_lines(x, call.pixels, tiles) if near and not form.channels else 0
    values = sample_values(call, output, grad, block=block, slabs=slabs, looks_ahead=not near, lines=lines)
    work = x.shape[0] * x.shape[1] * call.pixels * call.taps
    grain = max(tiles, 1) if grad else 1
    plan.launch(kernel, constants, pointers, items, values, work=work, grain=grain)


def _is_wide(call: Sampling, output: Image, grad: Image | None, items: int) -> bool:
    """Whether some offset, or the number of an item, needs 64 bits."""
    x = call.input
    images = [image.extent for image in (x, output, grad) if image]
    return is_wide(images, x.shape[0] * call.pixels * len(x.space), items)


def _constants(call: Sampling, form: Form, target: Target) -> dict[str, str | int]:
    """Return what a kernel is compiled for besides its types and what an item is."""
    mode, padding = MODE_CONSTANTS[call.mode], call.padding_mode.upper()
    found: dict[str, str | int] = {"NDIM": len(call.input.space), "MODE": mode, "PADDING": padding}
    found |= {"TILE": form.tile, "LANES": form.lanes, "VEC": form.vector, "GROUP": form.group, "WIDTH": form.width}
    return found | {"WINDOW": row_window(call.input, form, call.mode, target)}


def _cut(call: Sampling, form: Form, pointers: Pointers, target: Target, shares: int) -> tuple[int, int]:
    """Return into how many slabs an image is cut, and how many channels an item has."""
    x = call.input
    if target.device == CPU:
        slabs, blocks = (shares, 1) if len(x.space) > 1 else (1, shares)
        return slabs, ceil_div(x.shape[1], blocks)
    if form.channels or pointers.grad_grid != NULL:  # which is a sum over channels
        return 1, x.shape[1]
    return 1, cuda_block(x.shape[1], form.group, x.shape[0] * call.pixels)


def _shifted(pointers: Pointers, first: int, call: Sampling, output: Image) -> Pointers:
    """Return the pointers for the images from `first` on; those of the input are the caller's affair."""
    grid = first * call.pixels * len(call.input.space) * itemsize(call.grid_dtype)
    out = first * output.strides[0] * itemsize(output.dtype)
    return pointers._replace(
        grid=pointers.grid.at(grid),
        grad_grid=pointers.grad_grid.at(grid),
        output=pointers.output.at(out),
        grad_output=pointers.grad_output.at(out),
    )


def plan_forward(call: Sampling, output: Image, result: Output, target: Target) -> Plan:
    """Plan `grid_sample`."""
    plan = Plan(target, 2, (result,))
    if 0 in output.shape:
        return plan
    x, pointers = call.input, Pointers(plan.input(0), plan.input(1), plan.result(0))
    many = x.strides[1] != 1 and x.shape[1] >= MANY_CHANNELS[call.mode] and x.flat
    turns = target.device == CPU and many and call.pixels * call.taps >= prod(x.space)
    images = Staged(plan, x, packed(x.shape, x.dtype, channels_last=True) if turns else None)
    form = choose_form(images.layout, output, target, images.layout.strides[1] == 1)
    for first, count in images.rounds(pointers.input, x.shape[0]):
        piece = call._replace(input=images.layout.with_batch(count))
        where = _shifted(pointers, first, call, output)._replace(input=images.at(pointers.input, first))
        add_sampling(plan, piece, form, where, output.with_batch(count))
    return plan


def plan_backward(
    call: Sampling, output: Image, needs: tuple[Output | None, Output | None], final: Image, target: Target
) -> Plan:
    """Plan the gradients of `grid_sample`; `final` is the layout of the input's gradient."""
    x, wants_input = call.input, needs[0] is not None
    empty = 0 in output.shape or 0 in x.shape
    zero_grid = empty or call.mode == "nearest"  # has no slope between two jumps
    wants_grid = needs[1] is not None and not zero_grid
    form, layout = _backward_form(call, output, final if wants_input else None, target, reads=wants_grid)
    copied = wants_grid and form.channels and not _readable(x, layout, form, target)
    if copied and not x.flat:
        return Plan(target, 3, copies=(1,))
    grad = layout._replace(dtype=sum_dtype(x.dtype, target))
    in_place = empty or (grad == final and not rounded_parts(x.dtype, target, call.terms))
    zero_input = empty or (in_place and not target.clears)
    plan = Plan(target, 3, _zeroed(needs, (zero_input, zero_grid)))
    if empty or not (wants_input or wants_grid):
        return plan
    goals = plan.result(0), plan.result(1) if wants_grid else NULL
    pointers = Pointers(plan.input(1), plan.input(2), NULL, plan.input(0), *goals)
    summed = final if wants_input and not in_place else None
    _add_rounds(plan, call, form, pointers, Layouts(output, grad, layout if copied else None, summed))
    return plan


class Layouts(NamedTuple):
    """How arrays lie that gradients are made from and in.

    `output` is that of the output's gradient and `grad` that of sums. `copied` is the layout of images that are copied
    first, `summed` that of gradients which the sums are copied to.
    """

    output: Image
    grad: Image
    copied: Image | None
    summed: Image | None


def _add_rounds(plan: Plan, call: Sampling, form: Form, pointers: Pointers, layouts: Layouts) -> None:
    """Append what makes the gradients, of a few images at a time where it takes temporary memory."""
    target = plan.target
    output, grad, copied, summed = layouts
    x = call.input
    most = images_at_a_time(x, target) if copied or summed else x.shape[0]
    sums, apart = max(rounded_parts(x.dtype, target, call.terms), 1), summed is not None
    images = Staged(plan, x, copied, most)
    total = Summed(*(plan, pointers.grad_input, summed or grad, grad), sums=sums, apart=apart, images=most)
    if apart:
        anchors = add_anchors(plan, [[(pointers.grad_output, output)]], call.terms)
        pointers = pointers._replace(anchors=anchors)
    for first, count in images.rounds(pointers.input, x.shape[0]):
        where = _shifted(pointers, first, call, output)._replace(input=images.at(pointers.input, first))
        piece = call._replace(input=images.layout.with_batch(count))
        where = where._replace(grad_input=total.begin(first, count))
        _add_gradients(plan, piece, form, where, output.with_batch(count), grad.with_batch(count))
        total.end(first, count)


def _zeroed(outputs: Sequence[Output | None], zero: Sequence[bool]) -> tuple[Output | None, ...]:
    """Return the same with what says whether each must come filled with zeros."""
    return tuple(output and output._replace(zero=which) for output, which in zip(outputs, zero, strict=True))


def _readable(x: Image, layout: Image, form: Form, target: Target) -> bool:
    """Whether channels can be read as they lie; those of the batch may have another stride than the layout's."""
    fits = target.device == CPU or x.in_vectors(form.vector)
    return x.strides[1] == 1 and x.strides[2:] == layout.strides[2:] and fits


def _backward_form(
    call: Sampling, output: Image, final: Image | None, target: Target, *, reads: bool
) -> tuple[Form, Image]:
    """Choose the form, and the layout of the input's gradient, which in the form of channels is that of the image, too.

    `final` is how the gradient lies in the end, None where it is not needed; `reads`: so is the image. A CPU turns
    images of many channels, if there are not more pixels to turn than to read. Unless the channels of a pixel stay
    together, threads that divide them write to planes of their own: neighbours in memory would be lines of the cache
    that all of them want.
    """
    x = call.input
    neighbours, last = x.strides[1] == 1, final is not None and final.strides[1] == 1
    together = final is None or len(x.space) > 1 or shares_of(x, target) == 1
    if target.device == CPU:
        turns = call.pixels * call.taps >= prod(x.space)
        lies = (neighbours or not reads) and (last or final is None)
        neighbours = together and (lies or (turns and (neighbours or x.shape[1] >= MANY_CHANNELS[call.mode])))
    form = choose_form(packed(x.shape, x.dtype, channels_last=neighbours), output, target, neighbours, backward=True)
    return form, packed(x.shape, x.dtype, channels_last=form.channels or (together and last))


def _add_gradients(plan: Plan, call: Sampling, form: Form, both: Pointers, output: Image, grad: Image) -> None:
    """Append one kernel for both gradients, or two where an image is shared out, or pixels lie elsewhere in `grad`."""
    target = plan.target
    x, shares = call.input, shares_of(call.input, target)
    as_grad = call._replace(input=x._replace(strides=grad.strides))  # whose pixels it does not read
    if both.grad_input == NULL:
        add_sampling(plan, call, form, both, output)
    elif both.grad_grid == NULL:
        add_sampling(plan, as_grad, form, both, output, grad, shares)
    elif shares == 1 and x.strides[2:] == grad.strides[2:]:
        add_sampling(plan, call, form, both, output, grad)
    else:
        add_sampling(plan, call, form, both._replace(grad_input=NULL), output)
        add_sampling(plan, as_grad, form, both._replace(grad_grid=NULL), output, grad, shares)
