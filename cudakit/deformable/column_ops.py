"""The records of `deform_im2col`, its adjoint, and their gradients: how they are planned."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

from cudakit.deformable.column_checks import (
    NAMES,
    DeformOptions,
    check_col2im,
    check_columns,
    check_im2col,
    check_image_gradient,
    read_options,
)
from cudakit.deformable.column_double_plan import DoubleSlots, input_gradient, plan_double_columns
from cudakit.deformable.column_gradient_plan import Col2imSlots, gradient_layouts, plan_gradients
from cudakit.deformable.column_plan import Im2colSlots, plain_columns, plan_columns
from cudakit.deformable.geometry import Deformation, columns_shape, per_dimension
from cudakit.double_backward import check_directions, wanting
from cudakit.layout import image, ordered, unreadable
from cudakit.op import Op
from cudakit.plan import NULL, Output, Plan, Target

COLUMN_NAMES = ("columns", "offset", "mask")
COORDINATES = ("offset", "mask")
DOUBLE_COORDINATES = ("grad_grad_offset", "grad_grad_mask", *COORDINATES)
DOUBLE_IM2COL_NAMES = ("grad_grad_input", *DOUBLE_COORDINATES[:2], "grad_columns", *NAMES)
DOUBLE_COL2IM_NAMES = ("grad_grad_columns", *DOUBLE_COORDINATES[:2], "grad_output", *COLUMN_NAMES)


def _infer_im2col(specs: tuple[Any, ...], options: DeformOptions) -> tuple[Output]:
    input, offset, _ = specs
    last = options.data_format == "channels_last"
    out = offset.shape[1:-1] if last else offset.shape[2:]
    count = input.shape[-1 if last else 1] * prod(per_dimension("kernel_size", options.kernel_size, len(out)))
    return (Output(ordered(input.shape[0], count, (prod(out),), last), input.dtype),)


def _infer_col2im(specs: tuple[Any, ...], options: DeformOptions) -> tuple[Output]:
    columns, offset, _ = specs
    last, n = options.data_format == "channels_last", len(offset.shape) - 2
    channels = columns.shape[-1 if last else 1] // prod(per_dimension("kernel_size", options.kernel_size, n))
    space = per_dimension("input_size", options.input_size, n)
    return (Output(ordered(columns.shape[0], channels, space, last), columns.dtype),)


def _prepare_im2col(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    input, offset, mask = specs
    d, x = check_im2col(input, offset, mask, options)
    copies = unreadable(specs, {0: x})
    if copies:
        return Plan(target, 3, copies=copies)
    plan = Plan(target, 3, _infer_im2col(specs, options))
    if 0 not in columns_shape(d):
        mask_slot = plan.input(2) if d.masked else NULL
        plan_columns(plan, d, x, Im2colSlots(plan.input(0), plan.input(1), mask_slot, plan.result(0)))
    return plan


def _input_gradient(d: Deformation, target: Target) -> Output:
    """Return the result that columns are added up into, zero where nothing will be written or a GPU adds to it."""
    final, grad = gradient_layouts(d, target, plain_columns(d))
    added = grad == final and not target.clears and not target.reproducible
    return Output(d.shape(d.channels, d.space), d.dtype, zero=added or 0 in columns_shape(d))


def _prepare_im2col_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    grad, input, offset, mask = specs
    d, x = check_im2col(input, offset, mask, options)
    check_columns("grad_columns", grad, d)
    copies = unreadable(specs, {1: x})
    if copies:
        return Plan(target, 4, copies=copies)
    empty = 0 in columns_shape(d)
    results = (
        _input_gradient(d, target) if "input" in options.needs else None,
        Output(offset.shape, offset.dtype, zero=empty) if "offset" in options.needs else None,
        Output(mask.shape, mask.dtype, zero=empty) if "mask" in options.needs and mask is not None else None,
    )
    plan = Plan(target, 4, results)
    if empty or not any(results):
        return plan
    reads = any(results[1:])
    slots = Col2imSlots(
        *(plan.input(1) if reads else NULL, plan.input(2), plan.input(3) if d.masked else NULL, plan.input(0)),
        grad_input=plan.result(0),
        grad_offset=plan.result(1),
        grad_mask=plan.result(2),
    )
    plan_gradients(plan, d, x if reads else None, plain_columns(d, grad.aligned), slots)
    return plan


def _prepare_col2im(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    columns, offset, mask = specs
    d = check_col2im(columns, offset, mask, options)
    copies = unreadable(specs, {})
    if copies:
        return Plan(target, 3, copies=copies)
    plan = Plan(target, 3, (_input_gradient(d, target),))
    if 0 not in columns_shape(d):
        read = (NULL, plan.input(1), plan.input(2) if d.masked else NULL, plan.input(0))
        slots = Col2imSlots(*read, grad_input=plan.result(0))
        plan_gradients(plan, d, None, plain_columns(d, columns.aligned), slots)
    return plan


def _prepare_col2im_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    """Plan the gradients of `deform_col2im`: what its adjoint makes of the gradient of the image."""
    grad, columns, offset, mask = specs
    d = check_col2im(columns, offset, mask, options)
    x = check_image_gradient(grad, d, options)
    copies = unreadable(specs, {0: x})
    if copies:
        return Plan(target, 4, copies=copies)
    empty = 0 in columns_shape(d)
    wanted = [name in options.needs and spec is not None for name, spec in zip(COLUMN_NAMES, specs[1:], strict=True)]
    outputs = [Output(spec.shape, spec.dtype, zero=empty) if spec is not None else None for spec in specs[1:]]
    plan = Plan(target, 4, tuple(output if want else None for output, want in zip(outputs, wanted, strict=True)))
    if empty:
        return plan
    read = (plan.input(0), plan.input(2), plan.input(3) if d.masked else NULL)
    if wanted[0]:
        plan_columns(plan, d, x, Im2colSlots(*read, plan.result(0)))
    if wanted[1] or wanted[2]:
        slots = Col2imSlots(*read, plan.input(1), grad_offset=plan.result(1), grad_mask=plan.result(2))
        plan_gradients(plan, d, x, plain_columns(d, columns.aligned), slots)
    return plan


class _Roles(NamedTuple):
    """The arrays of a double backward: their names, and where the image and the columns stand among them.

    The image is the input of `deform_im2col`, or the gradient of what `deform_col2im` returns; columns likewise.
    """

    names: tuple[str, ...]
    image: int
    columns: int


OF_IM2COL, OF_COL2IM = _Roles(DOUBLE_IM2COL_NAMES, 4, 3), _Roles(DOUBLE_COL2IM_NAMES, 3, 4)


def _prepare_double(roles: _Roles, specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    """Plan the gradients of the gradients of `deform_im2col` or of `deform_col2im`."""
    tangent, by_offset, by_mask, grad, array, offset, mask = specs
    adjoint, names = roles is OF_COL2IM, roles.names
    if adjoint:
        d = check_col2im(array, offset, mask, options)
        x = check_image_gradient(grad, d, options)
    else:
        d, x = check_im2col(array, offset, mask, options)
        check_columns("grad_columns", grad, d)
    check_directions(names[:3], (tangent, by_offset, by_mask), (array, offset, mask))
    turn = None if adjoint or tangent is None else image(tangent, d.channels_last)
    copies = unreadable(specs, {0: turn, roles.image: x})
    if copies:
        return Plan(target, 7, copies=copies)
    empty, total = 0 in columns_shape(d), input_gradient(d, x, target)
    outputs = [spec and Output(spec.shape, spec.dtype, zero=empty) for spec in specs[3:]]
    outputs[roles.image - 3] = total.output(specs[roles.image].shape, empty=empty)
    named = zip(names[3:], outputs, strict=True)
    plan = Plan(target, 7, tuple(output if name in options.needs else None for name, output in named))
    if empty or not options.needs:
        return plan
    slots = [plan.input(i) if spec is not None else NULL for i, spec in enumerate(specs)]
    if options.needs == names[3:4]:
        slots[3] = NULL  # its own gradient does not depend on it
    where = DoubleSlots(
        *(slots[roles.image], slots[5], slots[6], slots[roles.columns]),
        *(NULL if adjoint else slots[0], slots[1], slots[2], slots[0] if adjoint else NULL),
        samples_tangent=plan.result(roles.columns - 3),
        grad_input=plan.result(roles.image - 3),
        grad_offset=plan.result(2),
        grad_mask=plan.result(3),
    )
    aligned = all(spec.aligned for spec in (specs[roles.columns], tangent if adjoint else None) if spec)
    plan_double_columns(plan, d, (x, turn), where, aligned)
    return plan


def _make_double(name: str, roles: _Roles) -> Op:
    return Op(
        name,
        roles.names,
        wanting(read_options, roles.names[3:]),
        partial(_prepare_double, roles),
        saved=tuple(range(len(roles.names))),
        optional=(*roles.names[:3], "mask"),
        coordinates=DOUBLE_COORDINATES,
    )


DEFORM_IM2COL_BACKWARD = Op(
    "deform_im2col_backward",
    ("grad_columns", "input", "offset", "mask"),
    read_options,
    _prepare_im2col_backward,
    _make_double("deform_im2col_double_backward", OF_IM2COL),
    saved=(0, 1, 2, 3),
    optional=("mask",),
    coordinates=COORDINATES,
)
DEFORM_IM2COL = Op(
    "deform_im2col",
    NAMES,
    read_options,
    _prepare_im2col,
    DEFORM_IM2COL_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
    coordinates=COORDINATES,
    nonlinear=("offset",),
    infer=_infer_im2col,
)
DEFORM_COL2IM_BACKWARD = Op(
    "deform_col2im_backward",
    ("grad_output", *COLUMN_NAMES),
    read_options,
    _prepare_col2im_backward,
    _make_double("deform_col2im_double_backward", OF_COL2IM),
    saved=(0, 1, 2, 3),
    optional=("mask",),
    coordinates=COORDINATES,
)
DEFORM_COL2IM = Op(
    "deform_col2im",
    COLUMN_NAMES,
    read_options,
    _prepare_col2im,
    DEFORM_COL2IM_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
    coordinates=COORDINATES,
    nonlinear=("offset",),
    infer=_infer_col2im,
)
