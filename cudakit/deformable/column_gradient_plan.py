"""How the gradients of a deformable convolution's samples are launched; the host's and a GPU's kernels alike."""

from math import gcd
from typing import NamedTuple

from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, itemsize
from cudakit.deformable.column_plan import (
    HOST_TILE,
    LAYOUT_FIELDS,
    Columns,
    channels_of,
    choose_form,
    constants,
    coordinates_from,
    wants_copy,
    wants_neighbours,
)
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.layout import MOST_SUMS_BYTES, Image, packed
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.rounding import add_anchors, one_row, rounded_parts, sum_dtype
from cudakit.source import Kernel
from cudakit.staging import Staged, Summed, images_at_a_time


class Col2imSlots(NamedTuple):
    """The slots of `deform_col2im`, in the order of its parameters; with weights, columns are gradients of outputs."""

    input: Slot = NULL
    offset: Slot = NULL
    mask: Slot = NULL
    columns: Slot = NULL
    weight: Slot = NULL
    samples: Slot = NULL
    grad_input: Slot = NULL
    grad_offset: Slot = NULL
    grad_mask: Slot = NULL
    anchors: Slot = NULL


COL2IM = Kernel(
    "deform_col2im.cu",
    "deform_col2im",
    "DeformCol2imParams",
    (
        *((name, 1) for name in Col2imSlots._fields),
        *((name, 1) for name in ("items", "spans", "span_stride", "opens", "channel_block")),
        ("grad_stride", 5),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=len(Col2imSlots._fields),
)


class Accumulation(NamedTuple):
    """How the gradient by the input is added up.

    Each of the `spans` of an image's pixels adds to a gradient of the image of its own, one behind the other. `opens`:
    the gradient is not there yet, rather than added to; on a CPU only. `rounded_parts`: in how many parts numbers are
    added up that are rounded first, 0 where none are.
    """

    spans: int = 1
    opens: bool = False
    rounded_parts: int = 0

    @property
    def sums(self) -> int:
        """Sums for each element, in as many images one behind the other."""
        return self.spans * max(self.rounded_parts, 1)


def add_gradients(
    plan: Plan,
    d: Deformation,
    x: Image,
    grad: Image,
    columns: Columns,
    slots: Col2imSlots,
    accumulation: Accumulation,
) -> None:
    """Append `deform_col2im`, in two launches where one would leave CPU threads without work."""
    target = plan.target
    groups = d.batch * d.offset_groups * accumulation.spans
    together = target.device != CPU or groups % target.threads == 0 or groups >= 4 * target.threads
    if slots.grad_input == NULL or slots.input == NULL or together:
        _add_col2im(plan, d, x, grad, columns, slots, accumulation)
        return
    alone = Col2imSlots(NULL, slots.offset, slots.mask, slots.columns, grad_input=slots.grad_input)
    _add_col2im(plan, d, x, grad, columns, alone, accumulation)
    _add_col2im(plan, d, x, grad, columns, slots._replace(grad_input=NULL), Accumulation())


def _add_col2im(
    plan: Plan,
    d: Deformation,
    x: Image,
    grad: Image,
    columns: Columns,
    slots: Col2imSlots,
    accumulation: Accumulation,
) -> None:
    target = plan.target
    count, spans = d.channels // d.offset_groups, accumulation.spans
    block = count
    if target.device == CPU and slots.input == NULL:
        block = ceil_div(count, min(count, ceil_div(target.threads, d.batch * d.offset_groups * spans)))
    form = choose_form(d, x if slots.input != NULL else grad, columns, target, block)
    if slots.input == NULL:
        block = min(block, channels_of(count, form, d.batch * d.offset_groups * d.taps * d.visited, target))
    tiles = ceil_div(d.visited, form.tile)
    together = d.taps * ceil_div(tiles, spans)  # items of a span
    items = d.offset_groups * ceil_div(count, block) * d.batch * spans * together
    defined = constants(d, form, (x.extent, grad.extent, columns.extent(d)), items * form.lanes)
    if slots.weight != NULL:
        defined["WEIGHTED"] = 1
    if slots.grad_input != NULL and accumulation.rounded_parts:
        defined["ROUNDED"] = accumulation.rounded_parts
    values = (
        *(spans, d.batch * grad.strides[0], int(accumulation.opens), block),
        *(grad.strides, *columns.fields, *geometry_values(d, x.strides)),
    )
    work = d.batch * d.channels * d.taps * d.visited
    grain = 1 if slots.grad_input == NULL else together
    plan.launch(COL2IM, defined, slots, items, values, work=work, grain=grain)


def _spans(d: Deformation, grad: Image, target: Target) -> int:
    """Return into how many spans to cut the pixels of images, so that all threads have as much to do."""
    groups = d.batch * d.offset_groups
    if target.device != CPU or groups >= 4 * target.threads:
        return 1
    room = MOST_SUMS_BYTES // (d.batch * grad.strides[0] * itemsize(grad.dtype))
    tiles = ceil_div(d.visited, 2 * HOST_TILE)
    return max(1, min(target.threads // gcd(groups, target.threads), tiles, room))


def gradient_layouts(d: Deformation, target: Target, columns: Columns) -> tuple[Image, Image]:
    """Return how the gradient of the input lies in the end and while it is added up."""
    shape = (d.batch, d.channels, *d.space)
    last = d.channels_last or wants_neighbours(d, columns, target)
    return (
        packed(shape, d.dtype, channels_last=d.channels_last),
        packed(shape, sum_dtype(d.dtype, target), channels_last=last),
    )


def plan_gradients(plan: Plan, d: Deformation, x: Image | None, columns: Columns, slots: Col2imSlots) -> None:
    """Append what `deform_col2im` and the gradients of `deform_im2col` launch.

    `x` is the layout of the input, None where it is not read; columns and `slots.grad_input`, a result, are in the data
    format.
    """
    target = plan.target
    item = itemsize(d.dtype)
    final, grad = gradient_layouts(d, target, columns)
    wanted, turned = slots.grad_input != NULL, grad != final
    copied = x is not None and wants_copy(x, grad if wanted else None, neighbours=wants_neighbours(d, columns, target))
    layout = x if x is not None and not copied else grad._replace(dtype=d.dtype)
    most = images_at_a_time(final, target) if copied or (wanted and turned) else d.batch
    spans = _spans(d.with_batch(most), grad, target) if wanted else 1
    accumulation = Accumulation(spans, target.clears, rounded_parts(d.dtype, target, corner_terms(d)))
    apart = wanted and (turned or accumulation.sums > 1)
    images = Staged(plan, x or layout, layout if copied else None, most)
    total = Summed(plan, slots.grad_input, final, grad, sums=accumulation.sums, apart=apart, images=most)
    anchors = _add_anchors(plan, d, slots) if apart else NULL
    for first, count in images.rounds(slots.input, d.batch):
        offset, mask = coordinates_from(d, first, slots.offset, slots.mask)
        grad_offset, grad_mask = coordinates_from(d, first, slots.grad_offset, slots.grad_mask)
        where = Col2imSlots(
            *(images.at(slots.input, first), offset, mask, slots.columns.at(first * columns.strides[0] * item)),
            grad_input=total.begin(first, count),
            grad_offset=grad_offset,
            grad_mask=grad_mask,
            anchors=anchors,
        )
        some = d.with_batch(count), layout.with_batch(count), grad.with_batch(count)
        add_gradients(plan, *some, columns, where, accumulation)
        total.end(first, count)


def _add_anchors(plan: Plan, d: Deformation, slots: Col2imSlots) -> Slot:
    """Append what finds the anchors of sums of columns."""
    factors = [(slots.columns, column_row(d)), (slots.mask, mask_row(d))]
    return add_anchors(plan, [factors], corner_terms(d))


def column_row(d: Deformation) -> Image:
    """Return the columns as one row of numbers."""
    return one_row(d.batch * d.channels * d.taps * d.pixels, d.dtype)


def mask_row(d: Deformation) -> Image:
    """Return the masks as one row of numbers."""
    return one_row(d.batch * d.offset_groups * d.taps * d.pixels, d.coordinate_dtype)


def corner_terms(d: Deformation) -> int:
    """Return how many numbers are added to an element of an image's gradient at most."""
    return d.taps * d.pixels << d.n
