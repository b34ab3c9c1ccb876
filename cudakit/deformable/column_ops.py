"""The records of `deform_im2col`, its adjoint, and their gradients: what they check and how they are planned."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import Spec
from cudakit.deformable.column_plan import plain_columns, plan_columns
from cudakit.deformable.double_plan import DoubleSlots, input_gradient, plan_double_columns
from cudakit.deformable.geometry import (
    Deformation,
    Integers,
    Window,
    columns_shape,
    deformation,
    numbers,
    per_dimension,
    window,
)
from cudakit.deformable.gradient_plan import Gradients, gradient_layouts, plan_gradients
from cudakit.double_backward import check_directions, wanting
from cudakit.errors import InvalidArgument
from cudakit.layout import DATA_FORMATS, MOST_ELEMENTS, Image, checked_image, image, ordered, packed, unreadable
from cudakit.op import Op
from cudakit.plan import NULL, Output, Plan, Target, clears

NAMES = ("input", "offset", "mask")
COLUMN_NAMES = ("columns", "offset", "mask")
COORDINATES = ("offset", "mask")
DOUBLE_COORDINATES = ("grad_grad_offset", "grad_grad_mask", *COORDINATES)
DOUBLE_IM2COL_NAMES = ("grad_grad_input", *DOUBLE_COORDINATES[:2], "grad_columns", *NAMES)
DOUBLE_COL2IM_NAMES = ("grad_grad_columns", *DOUBLE_COORDINATES[:2], "grad_output", *COLUMN_NAMES)


class DeformOptions(NamedTuple):
    """What the operators take besides arrays; `input_size` is that of `deform_col2im`."""

    kernel_size: Integers
    moves: Window
    data_format: str
    input_size: Integers = ()
    needs: tuple[str, ...] = NAMES


def _options(
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    data_format: Any,
    input_size: Any = (),
    needs: Any = NAMES,
) -> DeformOptions:
    kernel = numbers("kernel_size", kernel_size, minimum=1)
    moves = window(stride, padding, dilation)
    checks.choice("data_format", data_format, DATA_FORMATS)
    size = () if isinstance(input_size, tuple) and not input_size else numbers("input_size", input_size, minimum=1)
    return DeformOptions(kernel, moves, data_format, size, checks.names("needs", needs, NAMES))


def _sampled(input: Spec, offset: Spec, mask: Spec | None, options: DeformOptions) -> tuple[Deformation, Image]:
    """Check the arrays of `deform_im2col`."""
    x = checked_image("input", input, options.data_format, (1, 2, 3))
    kernel = per_dimension("kernel_size", options.kernel_size, len(x.space))
    return deformation(x, offset, mask, kernel, options.moves, options.data_format), x


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
    d, x = _sampled(input, offset, mask, options)
    copies = unreadable(specs, {0: x})
    if copies:
        return Plan(3, copies=copies)
    plan = Plan(3, _infer_im2col(specs, options))
    if 0 not in columns_shape(d):
        mask_slot = plan.input(2) if d.masked else NULL
        plan_columns(plan, target, d, x, (plan.input(0), plan.input(1), mask_slot, plan.result(0)))
    return plan


def _check_columns(argument: str, columns: Spec, d: Deformation) -> None:
    checks.same_dtype(argument, columns, "input", d.dtype)
    expected = columns_shape(d)
    names = (f"N={d.batch}", f"L={d.pixels}", f"K*C={expected[2]}")
    order = names if d.last else (names[0], f"C*K={expected[1]}", names[1])
    checks.shape(argument, columns, order)


def _input_gradient(d: Deformation, target: Target) -> Output:
    """Return the result that columns are added up into, zero where nothing will be written or a GPU adds to it."""
    final, grad = gradient_layouts(d, target, plain_columns(d))
    added = grad == final and not clears(target) and not target.reproducible
    return Output(d.shape(d.channels, d.space), d.dtype, zero=added or 0 in columns_shape(d))


def _prepare_im2col_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    grad, input, offset, mask = specs
    d, x = _sampled(input, offset, mask, options)
    _check_columns("grad_columns", grad, d)
    copies = unreadable(specs, {1: x})
    if copies:
        return Plan(4, copies=copies)
    empty = 0 in columns_shape(d)
    results = (
        _input_gradient(d, target) if "input" in options.needs else None,
        Output(offset.shape, offset.dtype, zero=empty) if "offset" in options.needs else None,
        Output(mask.shape, mask.dtype, zero=empty) if "mask" in options.needs and mask is not None else None,
    )
    plan = Plan(4, results)
    if empty or not any(results):
        return plan
    reads = any(results[1:])
    slots = Gradients(
        *(plan.input(1) if reads else NULL, plan.input(2), plan.input(3) if d.masked else NULL, plan.input(0)),
        grad_input=plan.result(0),
        grad_offset=plan.result(1),
        grad_mask=plan.result(2),
    )
    plan_gradients(plan, target, d, x if reads else None, plain_columns(d, grad.aligned), slots)
    return plan


def _added(columns: Spec, offset: Spec, mask: Spec | None, options: DeformOptions) -> Deformation:
    """Check the arrays of `deform_col2im`."""
    checks.floating("columns", columns)
    last = options.data_format == "channels_last"
    checks.dimensions("columns", columns, (3,), "(N, L, K*C)" if last else "(N, C*K, L)")
    checks.dimensions("offset", offset, (3, 4, 5), "(N, O..., G*K*n)" if last else "(N, G*K*n, O...)")
    n = len(offset.shape) - 2
    kernel = per_dimension("kernel_size", options.kernel_size, n)
    space = per_dimension("input_size", options.input_size, n)
    count = columns.shape[2 if last else 1]
    if count % prod(kernel):
        order = f"N, L, K*C={prod(kernel)}*C" if last else f"N, C*K=C*{prod(kernel)}, L"
        raise InvalidArgument("columns", f"have shape ({order})", columns.shape)
    x = packed((columns.shape[0], count // prod(kernel), *space), columns.dtype, channels_last=last)
    if prod(filter(None, x.shape)) >= MOST_ELEMENTS:
        raise InvalidArgument("input_size", "make fewer than 2**56 elements in all", checks.shown(space))
    d = deformation(x, offset, mask, kernel, options.moves, options.data_format, ("columns", "input_size"))
    _check_columns("columns", columns, d)
    return d


def _check_added(grad: Spec, d: Deformation, options: DeformOptions) -> Image:
    """Check the gradient by what columns are added up into, and return how it lies in memory."""
    x = checked_image("grad_output", grad, options.data_format, (d.n,))
    checks.same_dtype("grad_output", grad, "columns", d.dtype)
    checks.shape("grad_output", grad, d.shape(d.channels, d.space))
    return x


def _prepare_col2im(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    columns, offset, mask = specs
    d = _added(columns, offset, mask, options)
    copies = unreadable(specs, {})
    if copies:
        return Plan(3, copies=copies)
    plan = Plan(3, (_input_gradient(d, target),))
    if 0 not in columns_shape(d):
        read = (NULL, plan.input(1), plan.input(2) if d.masked else NULL, plan.input(0))
        slots = Gradients(*read, grad_input=plan.result(0))
        plan_gradients(plan, target, d, None, plain_columns(d, columns.aligned), slots)
    return plan


def _prepare_col2im_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    """Plan the gradients of `deform_col2im`: what its adjoint makes of the gradient of the image."""
    grad, columns, offset, mask = specs
    d = _added(columns, offset, mask, options)
    x = _check_added(grad, d, options)
    copies = unreadable(specs, {0: x})
    if copies:
        return Plan(4, copies=copies)
    empty = 0 in columns_shape(d)
    wanted = [name in options.needs and spec is not None for name, spec in zip(COLUMN_NAMES, specs[1:], strict=True)]
    outputs = [Output(spec.shape, spec.dtype, zero=empty) if spec is not None else None for spec in specs[1:]]
    plan = Plan(4, tuple(output if want else None for output, want in zip(outputs, wanted, strict=True)))
    if empty:
        return plan
    read = (plan.input(0), plan.input(2), plan.input(3) if d.masked else NULL)
    if wanted[0]:
        plan_columns(plan, target, d, x, (*read, plan.result(0)))
    if wanted[1] or wanted[2]:
        slots = Gradients(*read, plan.input(1), grad_offset=plan.result(1), grad_mask=plan.result(2))
        plan_gradients(plan, target, d, x, plain_columns(d, columns.aligned), slots)
    return plan


def _prepare_double(adjoint: bool, specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    """Plan the gradients of the gradients of `deform_im2col`, or of its `adjoint`, `deform_col2im`."""
    tangent, by_offset, by_mask, grad, array, offset, mask = specs
    if adjoint:  # an image comes as gradient, and columns have a tangent
        names, picture, columns = DOUBLE_COL2IM_NAMES, 3, 4
        d = _added(array, offset, mask, options)
        x = _check_added(grad, d, options)
    else:
        names, picture, columns = DOUBLE_IM2COL_NAMES, 4, 3
        d, x = _sampled(array, offset, mask, options)
        _check_columns("grad_columns", grad, d)
    check_directions(names[:3], (tangent, by_offset, by_mask), (array, offset, mask))
    turn = None if adjoint or tangent is None else image(tangent, d.last)
    copies = unreadable(specs, {0: turn, picture: x})
    if copies:
        return Plan(7, copies=copies)
    empty, total = 0 in columns_shape(d), input_gradient(d, x, target)
    outputs = [spec and Output(spec.shape, spec.dtype, zero=empty) for spec in specs[3:]]
    outputs[picture - 3] = total.output(specs[picture].shape, empty=empty)
    named = zip(names[3:], outputs, strict=True)
    plan = Plan(7, tuple(output if name in options.needs else None for name, output in named))
    if empty or not options.needs:
        return plan
    slots = [plan.input(i) if spec is not None else NULL for i, spec in enumerate(specs)]
    if options.needs == names[3:4]:
        slots[3] = NULL  # its own gradient does not depend on it
    where = DoubleSlots(
        *(slots[picture], slots[5], slots[6], slots[columns]),
        *(NULL if adjoint else slots[0], slots[1], slots[2], slots[0] if adjoint else NULL),
        samples_tangent=plan.result(columns - 3),
        grad_input=plan.result(picture - 3),
        grad_offset=plan.result(2),
        grad_mask=plan.result(3),
    )
    aligned = all(spec.aligned for spec in (specs[columns], tangent if adjoint else None) if spec)
    plan_double_columns(plan, target, d, (x, turn), where, aligned)
    return plan


def _make_double(adjoint: bool, name: str, arrays: tuple[str, ...]) -> Op:
    return Op(
        name,
        arrays,
        wanting(_options, arrays[3:]),
        partial(_prepare_double, adjoint),
        saved=tuple(range(len(arrays))),
        optional=(*arrays[:3], "mask"),
        coordinates=DOUBLE_COORDINATES,
    )


DEFORM_IM2COL_BACKWARD = Op(
    "deform_im2col_backward",
    ("grad_columns", "input", "offset", "mask"),
    _options,
    _prepare_im2col_backward,
    _make_double(False, "deform_im2col_double_backward", DOUBLE_IM2COL_NAMES),
    saved=(0, 1, 2, 3),
    optional=("mask",),
    coordinates=COORDINATES,
)
DEFORM_IM2COL = Op(
    "deform_im2col",
    NAMES,
    _options,
    _prepare_im2col,
    DEFORM_IM2COL_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
    coordinates=COORDINATES,
    curved=("offset",),
    infer=_infer_im2col,
)
DEFORM_COL2IM_BACKWARD = Op(
    "deform_col2im_backward",
    ("grad_output", *COLUMN_NAMES),
    _options,
    _prepare_col2im_backward,
    _make_double(True, "deform_col2im_double_backward", DOUBLE_COL2IM_NAMES),
    saved=(0, 1, 2, 3),
    optional=("mask",),
    coordinates=COORDINATES,
)
DEFORM_COL2IM = Op(
    "deform_col2im",
    COLUMN_NAMES,
    _options,
    _prepare_col2im,
    DEFORM_COL2IM_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
    coordinates=COORDINATES,
    curved=("offset",),
    infer=_infer_col2im,
)
