"""How the gradients of gradients by a deformable convolution's samples are launched."""

from math import gcd
from typing import NamedTuple

from cudakit.deform_geometry import GEOMETRY_FIELDS, Deformation, geometry_values
from cudakit.deform_plan import LAYOUT_FIELDS, Columns, Form, constants
from cudakit.double_backward import Result, add_packed, choose_vector
from cudakit.launch import Launch, load
from cudakit.layout import Image, packed
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import Kernel
from cudakit.structs import pack_tail

KERNEL = Kernel(
    "deform_double_backward.cu",
    "deform_double_backward",
    "DeformDoubleParams",
    (
        *((name, 1) for name in ("input", "offset", "mask", "columns")),
        *((f"{name}_tangent", 1) for name in ("input", "offset", "mask", "columns")),
        *((name, 1) for name in ("samples", "samples_tangent", "grad_input", "grad_offset", "grad_mask", "items")),
        *LAYOUT_FIELDS,
        *GEOMETRY_FIELDS,
    ),
    pointers=13,
)


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


def plan_double(
    plan: Plan,
    target: Target,
    d: Deformation,
    images: tuple[Image, Image | None],
    columns: Columns,
    slots: DoubleSlots,
) -> None:
    """Append `deform_double_backward`; columns have neighbouring channels.

    `images` are the layouts of the input and of its tangent, both `flat`; `slots.grad_input` is a result.
    """
    x, tangent = images
    total = Result.of(x.shape, x.dtype, last=d.last, added=True)
    sums = total.begin(plan, target, slots.grad_input)
    where = slots._replace(
        input=add_packed(plan, target, slots.input, x),
        input_tangent=NULL if tangent is None else add_packed(plan, target, slots.input_tangent, tangent),
        grad_input=sums,
    )
    plan.launch(_launch(d, x, columns, target, slots.grad_input != NULL), *where)
    total.end(plan, target, sums, slots.grad_input)


def plan_double_columns(
    plan: Plan, target: Target, d: Deformation, images: tuple[Image, Image | None], slots: DoubleSlots, aligned: bool
) -> None:
    """Append the same with columns in the data format, all `aligned`; `slots.samples_tangent` is a result."""
    shape, last = (d.batch, d.channels, d.taps * d.pixels), d.last
    samples = Result.of(shape, d.dtype, last=last, added=False)
    given = samples.final._replace(aligned=aligned)
    made = samples.begin(plan, target, slots.samples_tangent)
    turned = slots._replace(
        columns=add_packed(plan, target, slots.columns, given),
        columns_tangent=add_packed(plan, target, slots.columns_tangent, given),
        samples_tangent=made,
    )
    tap, pixel = (d.channels, d.taps * d.channels) if last else (d.pixels * d.channels, d.channels)
    columns = Columns((samples.made.strides[0], 1, tap, pixel), d.channels)
    plan_double(plan, target, d, images, columns, turned)
    samples.end(plan, target, made, slots.samples_tangent)


def _launch(d: Deformation, given: Image, columns: Columns, target: Target, added: bool) -> Launch:
    x = packed(given.shape, given.dtype, channels_last=True)
    group, together = d.channels // d.groups, d.taps * d.pixels
    items = d.batch * d.groups * together
    run = gcd(group, columns.block) if columns.block_stride else 0  # a vector does not reach into the next block
    form = Form(1, *choose_vector(group, d.dtype, items, target, run))
    defined = constants(d, form, (x.shape, x.strides), columns.span(d), ((items * form.lanes,), (1,)))
    tail = pack_tail(KERNEL, items, *columns.fields, *geometry_values(d, x.strides))
    kernel = load(KERNEL, tuple(defined.items()), target.device)
    work = d.channels * d.batch * together * 2**d.n
    return Launch(kernel, tail, items, together if added else 1, work, target.threads)
