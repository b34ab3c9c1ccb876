"""How the samples of a deformable convolution and their gradients are launched; the host's and a GPU's kernels alike.

The columns may lie in either data format, or in groups of the convolution one after the other.
"""

from math import gcd, prod
from typing import NamedTuple

from cudakit.array import CPU, itemsize
from cudakit.deform_geometry import (
    GEOMETRY_FIELDS,
    Deformation,
    Integers,
    columns_strides,
    geometry_values,
)
from cudakit.launch import Launch, load
from cudakit.layout import Image, accumulator, add_copy, chunks, cuda_lanes, is_wide, packed, part
from cudakit.plan import NULL, Plan, Slot, Target, clears
from cudakit.source import Kernel, type_constants
from cudakit.structs import pack_tail

HOST_TILE = 32
HOST_VECTOR = 64
FEW = 16  # channels that loops of constant length pay for
CUDA_VECTOR_BYTES = 16
LAYOUT_FIELDS = (("layout.stride", 4), ("layout.block", 1), ("layout.block_stride", 1))
IM2COL = Kernel(
    "deform_im2col.cu",
    "deform_im2col",
    "DeformIm2colParams",
    (
        *((name, 1) for name in ("input", "offset", "mask", "columns", "items", "tap_block")),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=4,
)
COL2IM = Kernel(
    "deform_col2im.cu",
    "deform_col2im",
    "DeformCol2imParams",
    (
        *((name, 1) for name in ("input", "offset", "mask", "columns")),
        *((name, 1) for name in ("samples", "grad_input", "grad_offset", "grad_mask")),
        *((name, 1) for name in ("items", "opens", "channel_block")),
        ("grad_stride", 5),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=8,
)


class Form(NamedTuple):
    """A kernel's compile-time sizes: pixels planned together, lanes of a pixel, channels of a lane.

    `width` is the number of channels that a host always works on together, 0 where it is none or changes.
    """

    tile: int
    lanes: int
    vector: int
    width: int = 0


class Columns(NamedTuple):
    """Columns in memory: strides (batch, channel, tap, pixel) and blocks of channels (deform.cuh: `ColumnLayout`)."""

    strides: Integers
    block: int
    block_stride: int = 0

    @property
    def neighbours(self) -> bool:
        """Whether the channels of a block lie next to each other."""
        return self.strides[1] == 1

    def span(self, d: Deformation) -> tuple[Integers, Integers]:
        """Return (shape, strides)."""
        blocks = d.channels // self.block
        return (d.batch, blocks, self.block, d.taps, d.visited), (self.strides[0], self.block_stride, *self.strides[1:])


def plain_columns(d: Deformation) -> Columns:
    """Return the layout of columns in the data format."""
    return Columns(columns_strides(d), d.channels)


def few(channels: int) -> int:
    """Return a number of channels that kernels are compiled for, 0 where that is not worth it."""
    return channels if channels <= FEW else 0


def choose_form(d: Deformation, x: Image, columns: Columns, target: Target, run: int) -> Form:
    """Choose how to read an image whose channels lie next to each other, or anyhow on a GPU; `run` of them an item."""
    count = d.channels // d.groups
    if target.device == CPU:
        vector = 4
        while vector < min(count, HOST_VECTOR):
            vector *= 2
        if columns.block < d.channels:  # a vector does not reach into the next block
            vector = min(vector, _power_of_two_in(gcd(count, columns.block)))
        # Longer runs of memory where a channel's pixels are neighbours: channels are far apart.
        even = count % run == 0 and (run <= vector or run % vector == 0)
        width = few(min(run, vector)) if even else 0
        return Form(2 * HOST_TILE if columns.strides[3] == 1 else HOST_TILE, 1, vector, width)
    vector = CUDA_VECTOR_BYTES // itemsize(d.dtype)
    steps = (count, columns.block, columns.block_stride, x.strides[0], *x.strides[2:])
    steps += (columns.strides[0], *columns.strides[2:])
    if not (columns.neighbours and x.strides[1] == 1 and x.aligned) or any(step % vector for step in steps):
        return Form(1, 1, 1)
    return Form(1, cuda_lanes(count, vector, d.batch * d.groups * d.taps * d.visited), vector)


def _power_of_two_in(number: int) -> int:
    """Return the largest power of two that divides a number."""
    return number & -number


def wants_neighbours(d: Deformation, columns: Columns, target: Target) -> bool:
    """Whether an image should be copied so that its channels lie next to each other."""
    if target.device == CPU:
        return True
    return columns.neighbours and (d.channels // d.groups) % (CUDA_VECTOR_BYTES // itemsize(d.dtype)) == 0


def constants(
    d: Deformation, form: Form, *layouts: tuple[Integers, Integers], large: bool = False
) -> dict[str, str | int]:
    """Return the prelude of a kernel; `layouts` are the arrays that it indexes besides offsets and masks."""
    offsets = d.batch * d.offset_channels * d.pixels
    wide = is_wide(*layouts, ((offsets,), (1,)), ((d.reach,), (1,)))
    found = type_constants(d.dtype, d.coordinates, wide, large)
    found |= {"NDIM": d.n, "MODE": "LINEAR", "PADDING": "ZEROS"}
    found |= {"TILE": form.tile, "LANES": form.lanes, "VEC": form.vector}
    return found | {"WIDTH": form.width} if form.width else found


def add_im2col(
    plan: Plan, target: Target, d: Deformation, x: Image, columns: Columns, slots: tuple[Slot, Slot, Slot, Slot]
) -> None:
    """Append `deform_im2col`; `slots` are those of input, offset, mask and columns."""
    form = choose_form(d, x, columns, target, d.channels // d.groups)
    pairs, places = d.groups * d.taps, d.batch * -(-d.visited // form.tile)
    # One tap at a time gives a GPU the most threads, and keeps to few pages where the pixels of columns are neighbours;
    # else more of them share what a tile's pixels have in common.
    alone = target.device != CPU or columns.strides[3] == 1
    block = 1 if alone else -(-pairs // max(1, -(-4 * target.threads // places)))
    items = places * -(-pairs // block)
    layouts = (x.shape, x.strides), columns.span(d), ((items * form.lanes,), (1,))
    defined = constants(d, form, *layouts, large=target.bypasses_cache(slots[3]))
    tail = pack_tail(IM2COL, items, block, *columns, *geometry_values(d, x.strides))
    kernel = load(IM2COL, tuple(defined.items()), target.device)
    plan.launch(Launch(kernel, tail, items, 1, d.batch * d.channels * d.taps * d.visited), *slots)


class Gradients(NamedTuple):
    """The slots of `deform_col2im`, in the order of its parameters."""

    input: Slot = NULL
    offset: Slot = NULL
    mask: Slot = NULL
    columns: Slot = NULL
    samples: Slot = NULL
    grad_input: Slot = NULL
    grad_offset: Slot = NULL
    grad_mask: Slot = NULL


def add_gradients(
    plan: Plan,
    target: Target,
    d: Deformation,
    x: Image,
    grad: Image,
    columns: Columns,
    slots: Gradients,
    opens: bool = False,
) -> None:
    """Append `deform_col2im`, in two launches where one would leave CPU threads without work.

    `opens`: the gradient of the input is not there yet, rather than added to; on a CPU only.
    """
    groups = d.batch * d.groups
    together = target.device != CPU or groups % target.threads == 0 or groups >= 4 * target.threads
    if slots.grad_input == NULL or slots.input == NULL or together:
        _add_col2im(plan, target, d, x, grad, columns, slots, opens)
        return
    alone = Gradients(NULL, slots.offset, slots.mask, slots.columns, NULL, slots.grad_input)
    _add_col2im(plan, target, d, x, grad, columns, alone, opens)
    _add_col2im(plan, target, d, x, grad, columns, slots._replace(grad_input=NULL), opens)


def _add_col2im(
    plan: Plan, target: Target, d: Deformation, x: Image, grad: Image, columns: Columns, slots: Gradients, opens: bool
) -> None:
    count = d.channels // d.groups
    blocks = 1
    if target.device == CPU and slots.input == NULL:
        blocks = min(count, -(-target.threads // (d.batch * d.groups)))
    block = -(-count // blocks)
    form = choose_form(d, x if slots.input != NULL else grad, columns, target, block)
    tiles = d.taps * -(-d.visited // form.tile)
    items = d.groups * -(-count // block) * d.batch * tiles
    layouts = [(x.shape, x.strides), (grad.shape, grad.strides), columns.span(d)]
    defined = constants(d, form, *layouts, ((items * form.lanes,), (1,)))
    tail = pack_tail(COL2IM, items, int(opens), block, grad.strides, *columns, *geometry_values(d, x.strides))
    kernel = load(COL2IM, tuple(defined.items()), target.device)
    work = d.batch * d.channels * d.taps * d.visited
    grain = 1 if slots.grad_input == NULL else tiles
    plan.launch(Launch(kernel, tail, items, grain, work), *slots)


def plan_columns(plan: Plan, target: Target, d: Deformation, x: Image, slots: tuple[Slot, Slot, Slot, Slot]) -> None:
    """Append `deform_im2col` with an input in any `flat` layout; `slots` are those of input, offset, mask, columns."""
    columns, item = plain_columns(d), itemsize(d.dtype)
    if x.strides[1] == 1 or not wants_neighbours(d, columns, target):
        add_im2col(plan, target, d, x, columns, slots)
        return
    last = packed(x.shape, x.dtype, channels_last=True)
    rounds = list(chunks(x, target))
    space = plan.workspace(rounds[0][1] * last.strides[0] * item)
    for first, count in rounds:
        source = (slots[0].at(first * x.strides[0] * item), part(x, count))
        add_copy(plan, target, source, (space, part(last, count)))
        offset, mask = coordinates_from(d, first, slots[1], slots[2])
        to = slots[3].at(first * columns.strides[0] * item)
        add_im2col(plan, target, d.part(count), part(last, count), columns, (space, offset, mask, to))


def gradient_layouts(d: Deformation, target: Target, columns: Columns) -> tuple[Image, Image]:
    """Return how the gradient of the input lies in the end and while it is added up."""
    shape = (d.batch, d.channels, *d.space)
    last = d.last or wants_neighbours(d, columns, target)
    return (
        packed(shape, d.dtype, channels_last=d.last),
        packed(shape, accumulator(d.dtype), channels_last=last),
    )


def wants_copy(x: Image, grad: Image | None, *, neighbours: bool) -> bool:
    """Whether an image must be copied before it is read.

    That is where its channels should be neighbours and are not, or beside a gradient that lies otherwise: a tap has one
    offset in both, so their dimensions must have the same strides.
    """
    apart = grad is not None and x.strides[2:] != grad.strides[2:]
    return apart or (neighbours and x.strides[1] != 1)


def coordinates_from(d: Deformation, first: int, offset: Slot, mask: Slot) -> tuple[Slot, Slot]:
    """Return the slots of offsets and masks, or of their gradients, from the image `first` on."""
    return (
        offset.at(first * d.coordinate_bytes(d.offset_channels)),
        mask.at(first * d.coordinate_bytes(d.mask_channels)),
    )


def plan_gradients(plan: Plan, target: Target, d: Deformation, x: Image | None, slots: Gradients) -> None:
    """Append what `deform_col2im` and the gradients of `deform_im2col` launch.

    `x` is the layout of the input, None where it is not read; `slots.grad_input` is a result in the data format.
    """
    columns, item = plain_columns(d), itemsize(d.dtype)
    final, grad = gradient_layouts(d, target, columns)
    summed = slots.grad_input != NULL and grad != final
    beside = grad if slots.grad_input != NULL else None
    copied = x is not None and wants_copy(x, beside, neighbours=wants_neighbours(d, columns, target))
    layout = x if x is not None and not copied else grad._replace(dtype=d.dtype)
    rounds = list(chunks(final, target)) if copied or summed else [(0, d.batch)]
    image = d.channels * prod(d.space)
    size = rounds[0][1] * image
    space = plan.workspace(size * item) if copied else NULL
    total = plan.workspace(size * itemsize(grad.dtype)) if summed else NULL
    for first, count in rounds:
        source = slots.input.at(first * (x.strides[0] if x else 0) * item)
        if copied and x is not None:
            add_copy(plan, target, (source, part(x, count)), (space, part(layout, count)))
        goal = slots.grad_input.at(first * final.strides[0] * item)
        if summed and not clears(target):
            plan.zero(total, count * image * itemsize(grad.dtype), target.device)
        offset, mask = coordinates_from(d, first, slots.offset, slots.mask)
        grad_offset, grad_mask = coordinates_from(d, first, slots.grad_offset, slots.grad_mask)
        where = Gradients(
            *(space if copied else source, offset, mask, slots.columns.at(first * columns.strides[0] * item), NULL),
            *(total if summed else goal, grad_offset, grad_mask),
        )
        add_gradients(
            plan, target, d.part(count), part(layout, count), part(grad, count), columns, where, clears(target)
        )
        if summed:
            add_copy(plan, target, (total, part(grad, count)), (goal, part(final, count)))
