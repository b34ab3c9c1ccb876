"""How the samples of a deformable convolution and their gradients are launched; the host's and a GPU's kernels alike.

The columns may lie in either data format, or in groups of the convolution one after the other.
"""

from math import prod
from typing import NamedTuple

from cudakit.array import CPU
from cudakit.deform_geometry import (
    GEOMETRY_FIELDS,
    Deformation,
    Integers,
    columns_strides,
    geometry_values,
)
from cudakit.launch import Launch, load
from cudakit.layout import Image, accumulator, add_copy, chunks, is_wide, itemsize, packed, part
from cudakit.op import NULL, Plan, Slot, Target
from cudakit.source import Kernel, type_constants
from cudakit.structs import pack_tail

HOST_TILE = 32
HOST_VECTOR = 64
CUDA_VECTOR_BYTES = 16
IM2COL = Kernel(
    "deform_im2col.cu",
    "deform_im2col",
    "DeformIm2colParams",
    (
        *((name, 1) for name in ("input", "offset", "mask", "columns", "items", "tap_block")),
        ("column_stride", 4),
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
        *((name, 1) for name in ("items", "channel_block")),
        *(("column_stride", 4), ("grad_stride", 5)),
        *GEOMETRY_FIELDS,
    ),
    pointers=8,
)


class Form(NamedTuple):
    """A kernel's compile-time sizes: pixels planned together, lanes of a pixel, channels of a lane."""

    tile: int
    lanes: int
    vector: int


class Columns(NamedTuple):
    """Columns in memory: strides (batch, channel, tap, pixel)."""

    strides: Integers

    @property
    def neighbours(self) -> bool:
        """Whether the channels lie next to each other."""
        return self.strides[1] == 1


def choose_form(d: Deformation, x: Image, columns: Columns, target: Target) -> Form:
    """Choose how to read an image whose channels lie next to each other, or anyhow on a GPU."""
    count = d.channels // d.groups
    if target.device == CPU:
        vector = 4
        while vector < min(count, HOST_VECTOR):
            vector *= 2
        return Form(HOST_TILE, 1, vector)
    vector = CUDA_VECTOR_BYTES // itemsize(d.dtype)
    steps = (count, x.strides[0], *x.strides[2:], *columns.strides[2:], columns.strides[0])
    if not (columns.neighbours and x.strides[1] == 1 and x.aligned) or any(step % vector for step in steps):
        return Form(1, 1, 1)
    lanes = 2
    while lanes < 32 and lanes * 2 * vector <= count:
        lanes *= 2
    return Form(1, lanes, vector)


def wants_neighbours(d: Deformation, columns: Columns, target: Target) -> bool:
    """Whether an image should be copied so that its channels lie next to each other."""
    if target.device == CPU:
        return True
    return columns.neighbours and (d.channels // d.groups) % (CUDA_VECTOR_BYTES // itemsize(d.dtype)) == 0


def constants(d: Deformation, form: Form, *layouts: tuple[Integers, Integers]) -> dict[str, str | int]:
    """Return the prelude of a kernel; `layouts` are the arrays that it indexes besides offsets and masks."""
    offsets = d.batch * d.offset_channels * d.pixels
    wide = is_wide(*layouts, ((offsets,), (1,)))
    found = type_constants(d.dtype, d.coordinates, wide)
    found |= {"NDIM": d.n, "MODE": "LINEAR", "PADDING": "ZEROS"}
    return found | {"TILE": form.tile, "LANES": form.lanes, "VEC": form.vector}


def columns_layout(d: Deformation, columns: Columns) -> tuple[Integers, Integers]:
    """Return (shape, strides) of columns."""
    return (d.batch, d.channels, d.taps, d.pixels), columns.strides


def add_im2col(
    plan: Plan, target: Target, d: Deformation, x: Image, columns: Columns, slots: tuple[Slot, Slot, Slot, Slot]
) -> None:
    """Append `deform_im2col`; `slots` are those of input, offset, mask and columns."""
    form = choose_form(d, x, columns, target)
    pairs, places = d.groups * d.taps, d.batch * -(-d.pixels // form.tile)
    # One tap at a time gives a GPU the most threads; on a CPU more of them share what a tile's pixels have in common.
    block = 1 if target.device != CPU else -(-pairs // max(1, -(-4 * target.threads // places)))
    items = places * -(-pairs // block)
    defined = constants(d, form, (x.shape, x.strides), columns_layout(d, columns), ((items * form.lanes,), (1,)))
    tail = pack_tail(IM2COL, items, block, columns.strides, *geometry_values(d, x.strides))
    kernel = load(IM2COL, tuple(defined.items()), target.device)
    plan.launch(Launch(kernel, tail, items, 1, d.batch * d.channels * d.taps * d.pixels), *slots)


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
    plan: Plan, target: Target, d: Deformation, x: Image, grad: Image, columns: Columns, slots: Gradients
) -> None:
    """Append `deform_col2im`, in two launches where one would leave CPU threads without work."""
    groups = d.batch * d.groups
    together = target.device != CPU or groups % target.threads == 0 or groups >= 4 * target.threads
    if slots.grad_input == NULL or slots.input == NULL or together:
        _add_col2im(plan, target, d, x, grad, columns, slots)
        return
    alone = Gradients(NULL, slots.offset, slots.mask, slots.columns, NULL, slots.grad_input)
    _add_col2im(plan, target, d, x, grad, columns, alone)
    _add_col2im(plan, target, d, x, grad, columns, slots._replace(grad_input=NULL))


def _add_col2im(
    plan: Plan, target: Target, d: Deformation, x: Image, grad: Image, columns: Columns, slots: Gradients
) -> None:
    form = choose_form(d, x if slots.input != NULL else grad, columns, target)
    count = d.channels // d.groups
    blocks = 1
    if target.device == CPU and slots.input == NULL:
        blocks = min(count, -(-target.threads // (d.batch * d.groups)))
    block = -(-count // blocks)
    tiles = d.taps * -(-d.pixels // form.tile)
    items = d.groups * -(-count // block) * d.batch * tiles
    layouts = [(x.shape, x.strides), (grad.shape, grad.strides), columns_layout(d, columns)]
    defined = constants(d, form, *layouts, ((items * form.lanes,), (1,)))
    tail = pack_tail(COL2IM, items, block, columns.strides, grad.strides, *geometry_values(d, x.strides))
    kernel = load(COL2IM, tuple(defined.items()), target.device)
    work = d.batch * d.channels * d.taps * d.pixels
    grain = 1 if slots.grad_input == NULL else tiles
    plan.launch(Launch(kernel, tail, items, grain, work), *slots)


def plan_columns(plan: Plan, target: Target, d: Deformation, x: Image, slots: tuple[Slot, Slot, Slot, Slot]) -> None:
    """Append `deform_im2col` with an input in any `flat` layout; `slots` are those of input, offset, mask, columns."""
    columns, item = Columns(columns_strides(d)), itemsize(d.dtype)
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


def gradient_layouts(d: Deformation, target: Target) -> tuple[Image, Image]:
    """Return how the gradient of the input lies in the end and while it is added up."""
    shape = (d.batch, d.channels, *d.space)
    last = d.last or wants_neighbours(d, Columns(columns_strides(d)), target)
    return (
        packed(shape, d.dtype, channels_last=d.last),
        packed(shape, accumulator(d.dtype), channels_last=last),
    )


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
    columns, item = Columns(columns_strides(d)), itemsize(d.dtype)
    final, grad = gradient_layouts(d, target)
    summed = slots.grad_input != NULL and grad != final
    copied = x is not None and wants_neighbours(d, columns, target) and x.strides[1] != 1
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
        if summed:
            plan.zero(total, count * image * itemsize(grad.dtype), target.device)
        offset, mask = coordinates_from(d, first, slots.offset, slots.mask)
        grad_offset, grad_mask = coordinates_from(d, first, slots.grad_offset, slots.grad_mask)
        where = Gradients(
            *(space if copied else source, offset, mask, slots.columns.at(first * columns.strides[0] * item), NULL),
            *(total if summed else goal, grad_offset, grad_mask),
        )
        add_gradients(plan, target, d.part(count), part(layout, count), part(grad, count), columns, where)
        if summed:
            add_copy(plan, target, (total, part(grad, count)), (goal, part(final, count)))
