"""im2col with offsets (arXiv 1703.06211, 1811.11168), its adjoint, and their gradients."""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import Spec
from cudakit.deform_geometry import (
    DATA_FORMATS,
    Deformation,
    Integers,
    Window,
    checked_image,
    columns_shape,
    deformation,
    hashable,
    numbers,
    per_dimension,
    scattered,
    window,
)
from cudakit.deform_plan import Gradients, gradient_layouts, plan_columns, plan_gradients
from cudakit.errors import InvalidArgument
from cudakit.layout import Image, packed
from cudakit.op import NULL, Op, Output, Plan, Target

NAMES = ("input", "offset", "mask")
COLUMN_NAMES = ("columns", "offset", "mask")


class DeformIm2colGradients(NamedTuple):
    """Gradients of `deform_im2col`; None for one that was not asked for, or whose array was not given."""

    input: Any
    offset: Any
    mask: Any


class DeformOptions(NamedTuple):
    """What the operators take besides arrays; `input_size` is that of `deform_col2im`."""

    kernel_size: Integers
    moves: Window
    data_format: str
    input_size: Integers = ()
    needs: tuple[str, ...] = NAMES


def deform_im2col(
    input: Any,
    offset: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
) -> Any:
    """Sample the columns that a deformable convolution multiplies with its weights.

    ``columns[n, c, i, o] = mask[n, g, i, o] * input[n, c](p)`` at the positions ``p_d = o_d stride_d - padding_d +
    i_d dilation_d + offset_d`` (arXiv 1703.06211, equation 2; the mask: arXiv 1811.11168, equation 1). Samples are
    linear; what lies outside of `input` counts as zero and is not read.

    Parameters
    ----------
    input : array, shape (N, C, S...)
        The images, with n = 1, 2 or 3 spatial dimensions S; float16, bfloat16, float32 or float64, any strides.
    offset : array, shape (N, G*K*n, O...)
        In pixels, for each of G groups of channels and K = prod(kernel_size) taps: channel ``(g*K + i)*n + d`` with
        the slowest dimension d first (dy before dx). Of the dtype of `input`, or float32 beside half precision. A
        sample whose position is not finite is outside.
    kernel_size, stride, padding, dilation : int or tuple of int
        As for a convolution. `padding` may have 2n numbers: all begins, then all ends.
    mask : array, shape (N, G*K, O...), optional
        Factors of the samples, of the dtype of `offset`.
    data_format : {"channels_first", "channels_last"}
        With "channels_last", `input` is (N, S..., C), `offset` (N, O..., G*K*n), `mask` (N, O..., G*K) and the result
        (N, L, K*C) with the channel fastest.

    Returns
    -------
    array, shape (N, C*K, L)
        With L = prod(O), in the order of ``torch.nn.functional.unfold``; of the kind, dtype and device of `input`.

    Raises
    ------
    ValueError
        If a shape does not fit, or a number or option is out of range.
    TypeError
        If dtypes, devices or kinds of array do not fit together.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line = np.array([[[1.0, 2.0, 4.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_im2col(line, half_a_pixel, 1)
    array([[[1.5, 3. , 2. ]]], dtype=float32)
    """
    return DEFORM_IM2COL((input, offset, mask), kernel_size, stride, padding, dilation, data_format)[0]


def deform_col2im(
    columns: Any,
    offset: Any,
    input_size: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
) -> Any:
    """Add columns up into an image: the adjoint of `deform_im2col` in its input.

    Parameters
    ----------
    columns : array, shape (N, C*K, L)
        What to add; with "channels_last", (N, L, K*C) with the channel fastest.
    offset : array, shape (N, G*K*n, O...)
        As for `deform_im2col`.
    input_size : tuple of int
        The spatial sizes S of the result.
    kernel_size, stride, padding, dilation, mask, data_format
        As for `deform_im2col`.

    Returns
    -------
    array, shape (N, C, S...)
        Of the kind, dtype and device of `columns`; sums for half precision are kept in float32. On a CPU the additions
        come in the same order on every run; on a GPU they are atomic, in no fixed order.

    Raises
    ------
    ValueError, TypeError
        As for `deform_im2col`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> columns = np.array([[[1.0, 1.0, 1.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_col2im(columns, half_a_pixel, (3,), 1)
    array([[[0.5, 1. , 1. ]]], dtype=float32)
    """
    arrays = (columns, offset, mask)
    return DEFORM_COL2IM(arrays, kernel_size, stride, padding, dilation, data_format, hashable(input_size))[0]


def deform_im2col_backward(
    grad_columns: Any,
    input: Any,
    offset: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    needs: Any = NAMES,
    data_format: str = "channels_first",
) -> DeformIm2colGradients:
    """Return the gradients of `deform_im2col`.

    Parameters
    ----------
    grad_columns : array, shape (N, C*K, L)
        The gradient by the columns, of the dtype of `input`.
    input, offset, kernel_size, stride, padding, dilation, mask, data_format
        As for `deform_im2col`.
    needs : collection of {"input", "offset", "mask"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    DeformIm2colGradients
        A named tuple (input, offset, mask). At an integer coordinate the slope is the right-hand one. Sums as for
        `deform_col2im`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_im2col`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line = np.array([[[1.0, 2.0, 4.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_im2col_backward(np.ones((1, 1, 3), np.float32), line, half_a_pixel, 1).offset
    array([[[ 1.,  2., -4.]]], dtype=float32)
    """
    arrays = (grad_columns, input, offset, mask)
    options = (kernel_size, stride, padding, dilation, data_format, (), hashable(needs))
    return DeformIm2colGradients(*DEFORM_IM2COL_BACKWARD(arrays, *options))


def _options(kernel_size: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> DeformOptions:
    """Check what is no array: (kernel_size, stride, padding, dilation, data_format[, input_size[, needs]])."""
    try:
        return _checked(*map(hashable, (kernel_size, stride, padding, dilation)), *rest)
    except TypeError:  # something unhashable, which the cache does not take and no option may be
        return _checked.__wrapped__(kernel_size, stride, padding, dilation, *rest)


@lru_cache(maxsize=1024, typed=True)
def _checked(
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
    size = numbers("input_size", input_size, minimum=1) if input_size != () else ()
    return DeformOptions(kernel, moves, data_format, size, checks.names("needs", needs, NAMES))


def _sampled(input: Spec, offset: Spec, mask: Spec | None, options: DeformOptions) -> tuple[Deformation, Image]:
    """Check the arrays of `deform_im2col`."""
    x = checked_image("input", input, options.data_format, (1, 2, 3))
    kernel = per_dimension("kernel_size", options.kernel_size, len(x.space))
    return deformation(x, offset, mask, kernel, options.moves, options.data_format), x


def _prepare_im2col(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    input, offset, mask = specs
    d, x = _sampled(input, offset, mask, options)
    copies = scattered(specs, (1, 2)) or (() if x.flat else (0,))
    if copies:
        return Plan(3, copies=copies)
    shape = columns_shape(d)
    plan = Plan(3, (Output(shape, d.dtype),))
    if 0 not in shape:
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
    """Return the result that columns are added up into, zero where nothing will be written or it is added to."""
    final, grad = gradient_layouts(d, target)
    return Output(d.shape(d.channels, d.space), d.dtype, zero=grad == final or 0 in columns_shape(d))


def _prepare_im2col_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    grad, input, offset, mask = specs
    d, x = _sampled(input, offset, mask, options)
    _check_columns("grad_columns", grad, d)
    wanted = set(options.needs) & {"offset", "mask"}
    copies = scattered(specs, (0, 2, 3)) or (() if x.flat else (1,))
    if copies:
        return Plan(4, copies=copies)
    empty = 0 in columns_shape(d)
    results = (
        _input_gradient(d, target) if "input" in options.needs else None,
        Output(offset.shape, offset.dtype, zero=empty) if "offset" in wanted else None,
        Output(mask.shape, mask.dtype, zero=empty) if "mask" in wanted and mask is not None else None,
    )
    plan = Plan(4, results)
    if empty:
        return plan
    slots = Gradients(
        *(plan.input(1) if wanted else NULL, plan.input(2), plan.input(3) if d.masked else NULL, plan.input(0)),
        *(NULL, *map(plan.result, range(3))),
    )
    plan_gradients(plan, target, d, x if wanted else None, slots)
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
    d = deformation(x, offset, mask, kernel, options.moves, options.data_format)
    _check_columns("columns", columns, d)
    return d


def _prepare_col2im(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    columns, offset, mask = specs
    d = _added(columns, offset, mask, options)
    copies = scattered(specs, (0, 1, 2))
    if copies:
        return Plan(3, copies=copies)
    plan = Plan(3, (_input_gradient(d, target),))
    if 0 not in columns_shape(d):
        slots = Gradients(NULL, plan.input(1), plan.input(2) if d.masked else NULL, plan.input(0))
        plan_gradients(plan, target, d, None, slots._replace(grad_input=plan.result(0)))
    return plan


def _prepare_col2im_backward(specs: tuple[Any, ...], options: DeformOptions, target: Target) -> Plan:
    """Plan the gradients of `deform_col2im`: what its adjoint makes of the gradient of the image."""
    grad, columns, offset, mask = specs
    d = _added(columns, offset, mask, options)
    x = checked_image("grad_output", grad, options.data_format, (d.n,))
    copies = scattered(specs, (1, 2, 3)) or (() if x.flat else (0,))
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
        slots = Gradients(*read, plan.input(1), NULL, NULL, plan.result(1), plan.result(2))
        plan_gradients(plan, target, d, x, slots)
    return plan


DEFORM_IM2COL_BACKWARD = Op(
    "deform_im2col_backward",
    ("grad_columns", "input", "offset", "mask"),
    _options,
    _prepare_im2col_backward,
    optional=("mask",),
)
DEFORM_IM2COL = Op(
    "deform_im2col",
    NAMES,
    _options,
    _prepare_im2col,
    DEFORM_IM2COL_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
)
DEFORM_COL2IM_BACKWARD = Op(
    "deform_col2im_backward",
    ("grad_output", *COLUMN_NAMES),
    _options,
    _prepare_col2im_backward,
    optional=("mask",),
)
DEFORM_COL2IM = Op(
    "deform_col2im",
    COLUMN_NAMES,
    _options,
    _prepare_col2im,
    DEFORM_COL2IM_BACKWARD,
    saved=(0, 1, 2),
    optional=("mask",),
)
