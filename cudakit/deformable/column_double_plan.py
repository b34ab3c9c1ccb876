"""How the gradients of gradients by a deformable convolution's samples are launched."""

from itertools import compress
from math import gcd
from typing import NamedTuple

from cudakit.deformable.column_gradient_plan import column_row, corner_terms, mask_row
from cudakit.deformable.column_plan import LAYOUT_FIELDS, Columns, Form, constants
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.double_backward import Result, add_packed, choose_vector
from cudakit.layout import Image, packed
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.rounding import add_anchors, one_row, rounded_parts
from cudakit.source import Kernel


class DoubleSlots(NamedTuple):
    """The slots of `deform_double_backward`, in the order of its parameters."""

    input: Slot
    offset: Slot
    mask: Slot
    columns: Slot
    input_tangent: Slot = NULL
    offset_tangent: Slot = NULL
    mask_tangent: Slot = NULL
    columns_tangent: Slot = NULL
    samples: Slot = NULL
    samples_tangent: Slot = NULL
    grad_input: Slot = NULL
    grad_offset: Slot = NULL
    grad_mask: Slot = NULL
    anchors: Slot = NULL


KERNEL = Kernel(
    "deform_double_backward.cu",
    "deform_double_backward",
    "DeformDoubleParams",
    (
        *((name, 1) for name in DoubleSlots._fields),
        *((name, 1) for name in ("items", "batch")),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=len(DoubleSlots._fields),
)


def plan_double(
    plan: Plan,
    d: Deformation,
    images: tuple[Image, Image | None],
    columns: Columns,
    slots: DoubleSlots,
) -> None:
    """Append `deform_double_backward`; columns have neighbouring channels.

    `images` are the layouts of the input and of its tangent, both `flat`; `slots.grad_input` is a result.
    """
    target = plan.target
    x, tangent = images
    total = input_gradient(d, x, target)
    sums = total.begin(plan, slots.grad_input)
    where = slots._replace(
        input=add_packed(plan, slots.input, x),
        input_tangent=NULL if tangent is None else add_packed(plan, slots.input_tangent, tangent),
        grad_input=sums,
        anchors=NULL if sums == NULL else _add_anchors(plan, d, slots),
    )
    _add_launch(plan, d, packed(x.shape, x.dtype, channels_last=True), columns, where)
    total.end(plan, sums, slots.grad_input)


def input_gradient(d: Deformation, x: Image, target: Target) -> Result:
    """Return how what `deform_double_backward` adds to is made, and where it is wanted."""
    return Result.added(x.shape, x.dtype, target, _terms(d), last=d.channels_last)


def _terms(d: Deformation) -> int:
    """Return how many products are added to an element of the gradient by the input at most: see `_add_anchors`."""
    return corner_terms(d) * (2 + d.n)


def _add_anchors(plan: Plan, d: Deformation, slots: DoubleSlots) -> Slot:
    """Append what finds the anchors of sums of (m w g)' = m w g' + m' w g + m (w_1 p_1' + ...) g, where w, w_i <= 1."""
    offsets = one_row(d.batch * d.offset_groups * d.taps * d.n * d.pixels, d.coordinate_dtype)
    grad, grad_tangent = ((slot, column_row(d)) for slot in (slots.columns, slots.columns_tangent))
    mask, mask_tangent = ((slot, mask_row(d)) for slot in (slots.mask, slots.mask_tangent))
    products = [(mask, grad_tangent), (mask_tangent, grad), (mask, (slots.offset_tangent, offsets), grad)]
    there = [changes[0] != NULL for changes in (grad_tangent, mask_tangent, products[2][1])]
    return add_anchors(plan, list(compress(products, there)), _terms(d))


def plan_double_columns(
    plan: Plan, d: Deformation, images: tuple[Image, Image | None], slots: DoubleSlots, aligned: bool
) -> None:
    """Append the same with columns in the data format, all `aligned`; `slots.samples_tangent` is a result."""
    shape, last = (d.batch, d.channels, d.taps * d.pixels), d.channels_last
    samples = Result.written(shape, d.dtype, last=last)
    given = samples.final._replace(aligned=aligned)
    made = samples.begin(plan, slots.samples_tangent)
    turned = slots._replace(
        columns=add_packed(plan, slots.columns, given),
        columns_tangent=add_packed(plan, slots.columns_tangent, given),
        samples_tangent=made,
    )
    tap, pixel = (d.channels, d.taps * d.channels) if last else (d.pixels * d.channels, d.channels)
    columns = Columns((samples.made.strides[0], 1, tap, pixel), d.channels)
    plan_double(plan, d, images, columns, turned)
    samples.end(plan, made, slots.samples_tangent)


def _add_launch(plan: Plan, d: Deformation, x: Image, columns: Columns, slots: DoubleSlots) -> None:
    """Append the kernel; `x` is the layout of the input."""
    target = plan.target
    added = slots.grad_input != NULL
    group, together = d.channels // d.offset_groups, d.taps * d.pixels
    items = d.batch * d.offset_groups * together
    run = gcd(group, columns.block) if columns.block_stride else 0  # a vector does not reach into the next block
    form = Form(1, *choose_vector(group, d.dtype, items, target, run))
    defined = constants(d, form, (x.extent, columns.extent(d)), items * form.lanes)
    if added and target.reproducible:
        defined["ROUNDED"] = rounded_parts(d.dtype, target, _terms(d))
    work = d.channels * d.batch * together * 2**d.n
    values = (d.batch, *columns.fields, *geometry_values(d, x.strides))
    plan.launch(KERNEL, defined, slots, items, values, work=work, grain=together if added else 1)
