"""How the samples of a deformable convolution are launched; the host's and a GPU's kernels alike.

The columns may lie in either data format, or in groups of the convolution one after the other.
"""

from collections.abc import Iterable
from math import gcd
from typing import NamedTuple

from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, itemsize
from cudakit.deformable.geometry import (
    GEOMETRY_FIELDS,
    Deformation,
    Integers,
    columns_strides,
    geometry_values,
)
from cudakit.layout import Extent, Image, cuda_block, cuda_lanes, cuda_vector, host_vector, is_wide, packed
from cudakit.plan import Plan, Slot, Target
from cudakit.source import Kernel, type_constants
from cudakit.staging import Staged

HOST_TILE = 32
FEW = 16  # channels that loops of constant length pay for


class Im2colSlots(NamedTuple):
    """The slots of `deform_im2col`, in the order of its parameters."""

    input: Slot
    offset: Slot
    mask: Slot
    columns: Slot


LAYOUT_FIELDS = (("layout.stride", 4), ("layout.block", 1), ("layout.block_stride", 1))
IM2COL = Kernel(
    "deform_im2col.cu",
    "deform_im2col",
    "DeformIm2colParams",
    (
        *((name, 1) for name in Im2colSlots._fields),
        *((name, 1) for name in ("items", "tap_block", "channel_block")),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=len(Im2colSlots._fields),
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
    """Columns in memory: strides (batch, channel, tap, pixel) and blocks of channels (deform.cuh: `ColumnLayout`).

    `aligned` is that of a `Spec`.
    """

    strides: Integers
    block: int
    block_stride: int = 0
    aligned: bool = True

    @property
    def neighbours(self) -> bool:
        """Whether the channels of a block lie next to each other."""
        return self.strides[1] == 1

    @property
    def fields(self) -> tuple[Integers, int, int]:
        """The values of `LAYOUT_FIELDS`."""
        return self.strides, self.block, self.block_stride

    def extent(self, d: Deformation) -> Extent:
        """Return (shape, strides)."""
        blocks = d.channels // self.block
        return (d.batch, blocks, self.block, d.taps, d.visited), (self.strides[0], self.block_stride, *self.strides[1:])


def plain_columns(d: Deformation, aligned: bool = True) -> Columns:
    """Return the layout of columns in the data format."""
    return Columns(columns_strides(d), d.channels, aligned=aligned)


def few(channels: int) -> int:
    """Return a number of channels that kernels are compiled for, 0 where that is not worth it."""
    return channels if channels <= FEW else 0


def choose_form(d: Deformation, x: Image, columns: Columns, target: Target, run: int) -> Form:
    """Choose how to read an image whose channels lie next to each other, or anyhow on a GPU; `run` of them an item."""
    count = d.channels // d.offset_groups
    if target.device == CPU:
        vector = host_vector(count)
        if columns.block < d.channels:  # a vector does not reach into the next block
            vector = min(vector, _power_of_two_in(gcd(count, columns.block)))
        # Longer runs of memory where a channel's pixels are neighbours: channels are far apart.
        even = count % run == 0 and (run <= vector or run % vector == 0)
        width = few(min(run, vector)) if even else 0
        return Form(2 * HOST_TILE if columns.strides[3] == 1 else HOST_TILE, 1, vector, width)
    vector = cuda_vector(count, d.dtype)
    steps = (count, columns.block, columns.block_stride, columns.strides[0], *columns.strides[2:])
    neighbours = columns.neighbours and columns.aligned and x.strides[1] == 1
    if vector == 1 or not (neighbours and x.in_vectors(vector)) or any(step % vector for step in steps):
        return Form(1, 1, 1)
    return Form(1, cuda_lanes(count, vector, d.batch * d.offset_groups * d.taps * d.visited), vector)


def _power_of_two_in(number: int) -> int:
    """Return the largest power of two that divides a number."""
    return number & -number


def wants_neighbours(d: Deformation, columns: Columns, target: Target) -> bool:
    """Whether an image should be copied so that its channels lie next to each other."""
    if target.device == CPU:
        return True
    return columns.neighbours and cuda_vector(d.channels // d.offset_groups, d.dtype) > 1


def constants(
    d: Deformation, form: Form, extents: Iterable[Extent], *counts: int, large: bool = False
) -> dict[str, str | int]:
    """Return the prelude of a kernel.

    `extents` are those of the arrays that it indexes besides offsets and masks, `counts` what else its indices reach.
    """
    offsets = d.batch * d.offset_channels * d.pixels
    far = 4 * max(d.reach, *d.space)  # `FAR` of `interpolate.cuh` lies beyond such places, and sums with it fit
    wide = is_wide(extents, *counts, offsets, far)
    found = type_constants(d.dtype, d.coordinate_dtype, wide, large)
    found |= {"NDIM": d.n, "MODE": "LINEAR", "PADDING": "ZEROS"}
    found |= {"TILE": form.tile, "LANES": form.lanes, "VEC": form.vector}
    return found | {"WIDTH": form.width} if form.width else found


def channels_of(count: int, form: Form, items: int, target: Target) -> int:
    """Return how many of a group's channels an item has: those that a GPU takes one by one may be cut."""
    return count if target.device == CPU or form.vector > 1 else cuda_block(count, 1, items)


def add_im2col(plan: Plan, d: Deformation, x: Image, columns: Columns, slots: Im2colSlots) -> None:
    """Append `deform_im2col`."""
    target = plan.target
    count = d.channels // d.offset_groups
    form = choose_form(d, x, columns, target, count)
    pairs, places = d.offset_groups * d.taps, d.batch * ceil_div(d.visited, form.tile)
    # One tap at a time gives a GPU the most threads, and keeps to few pages where the pixels of columns are neighbours;
    # else more of them share what a tile's pixels have in common.
    alone = target.device != CPU or columns.strides[3] == 1
    block = 1 if alone else ceil_div(pairs, max(1, ceil_div(4 * target.threads, places)))
    items = places * ceil_div(pairs, block)
    width = channels_of(count, form, items, target)
    items *= ceil_div(count, width)
    large = target.bypasses_cache(slots.columns)
    defined = constants(d, form, (x.extent, columns.extent(d)), items * form.lanes, large=large)
    values = (block, width, *columns.fields, *geometry_values(d, x.strides))
    plan.launch(IM2COL, defined, slots, items, values, work=d.batch * d.channels * d.taps * d.visited)


def plan_columns(plan: Plan, d: Deformation, x: Image, slots: Im2colSlots) -> None:
    """Append `deform_im2col` with an input in any `flat` layout, copied where that is faster to read."""
    target = plan.target
    columns = plain_columns(d)
    copied = x.strides[1] != 1 and wants_neighbours(d, columns, target)
    images = Staged(plan, x, packed(x.shape, x.dtype, channels_last=True) if copied else None)
    for first, count in images.rounds(slots.input, d.batch):
        some = Im2colSlots(
            images.at(slots.input, first),
            *coordinates_from(d, first, slots.offset, slots.mask),
            columns=slots.columns.at(first * columns.strides[0] * itemsize(d.dtype)),
        )
        add_im2col(plan, d.with_batch(count), images.layout.with_batch(count), columns, some)


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
