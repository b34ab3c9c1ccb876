"""The sampler of spatial transformers (arXiv 1506.02025, section 3.3), with its gradients."""

from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import Spec, is_contiguous
from cudakit.double_backward import check_directions, wanting
from cudakit.layout import DATA_FORMATS, Image, axes, checked_image, image, ordered, packed, unreadable
from cudakit.op import Op
from cudakit.plan import Output, Plan, Target
from cudakit.sampling.grid_double_plan import plan_double_backward
from cudakit.sampling.grid_form import MODES, PADDING_MODES
from cudakit.sampling.grid_plan import Sampling, plan_backward, plan_forward

DOUBLE_NAMES = ("grad_grad_input", "grad_grad_grid")


class GridSampleGradients(NamedTuple):
    """Gradients of `grid_sample`; None for one that was not asked for."""

    input: Any
    grid: Any


class GridSampleOptions(NamedTuple):
    """What `grid_sample` takes besides arrays."""

    mode: str
    padding_mode: str
    align_corners: bool
    data_format: str
    needs: tuple[str, ...] = ("input", "grid")


def grid_sample(
    input: Any,
    grid: Any,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    data_format: str = "channels_first",
) -> Any:
    """Sample an image at the positions of a grid.

    The sampler of a spatial transformer (arXiv 1506.02025, equation 3), with the meaning of
    ``torch.nn.functional.grid_sample``, for 1, 2 or 3 dimensions.

    Parameters
    ----------
    input : array, shape (N, C, S...)
        The images, with 1, 2 or 3 spatial dimensions S; float16, bfloat16, float32 or float64, any strides.
    grid : array, shape (N, O..., n)
        Where each output pixel looks: x[, y[, z]], with -1 and 1 at the borders of `input`. Of the dtype of `input`, or
        float32 beside half precision. NaN samples as outside: the value is 0 in every `padding_mode`. Infinity,
        or what is too far off for an index, is outside with "zeros", and the border with the others.
    mode : {"bilinear", "nearest", "bicubic"}
        Interpolation, for every number of dimensions: "bilinear" is linear along each, "bicubic" Keys' cubic
        convolution with A = -0.75, and "nearest" rounds halves to even.
    padding_mode : {"zeros", "border", "reflection"}
        What lies outside of `input`.
    align_corners : bool
        Whether -1 and 1 are the centres of the outer pixels (True) or their outer edges (False).
    data_format : {"channels_first", "channels_last"}
        With "channels_last", `input` is (N, S..., C) and the result (N, O..., C).

    Returns
    -------
    array, shape (N, C, O...)
        The samples, of the kind, dtype and device of `input`.

    Raises
    ------
    ValueError
        If a shape does not fit or an option is unknown.
    TypeError
        If dtypes, devices or kinds of array do not fit together, or an option is of another type.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> image = np.array([[[[0.0, 1.0], [2.0, 3.0]]]], np.float32)
    >>> centre = np.zeros((1, 1, 1, 2), np.float32)
    >>> cudakit.grid_sample(image, centre)
    array([[[[1.5]]]], dtype=float32)
    """
    return GRID_SAMPLE((input, grid), mode, padding_mode, align_corners, data_format)[0]


def grid_sample_backward(
    grad_output: Any,
    input: Any,
    grid: Any,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    needs: Any = ("input", "grid"),
    data_format: str = "channels_first",
) -> GridSampleGradients:
    """Return the gradients of `grid_sample`.

    Parameters
    ----------
    grad_output : array, shape (N, C, O...)
        The gradient by the samples, of the dtype of `input`.
    input, grid, mode, padding_mode, align_corners, data_format
        As for `grid_sample`.
    needs : collection of {"input", "grid"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    GridSampleGradients
        A named tuple (input, grid), each of its argument's shape and dtype. At a knot of the interpolation the slope is
        the right-hand one; a clipped coordinate has none, nor has any with "nearest". Sums for half precision are kept
        in float32. On a CPU the additions come in the same order on every run with the same number of threads; on a GPU
        they are atomic, in no fixed order, unless `cudakit.use_deterministic_algorithms` asks for one result.

    Raises
    ------
    ValueError, TypeError
        As for `grid_sample`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> image = np.array([[[[0.0, 1.0], [2.0, 3.0]]]], np.float32)
    >>> centre = np.zeros((1, 1, 1, 2), np.float32)
    >>> cudakit.grid_sample_backward(np.ones((1, 1, 1, 1), np.float32), image, centre).grid
    array([[[[1., 2.]]]], dtype=float32)
    """
    arrays = (grad_output, input, grid)
    return GridSampleGradients(*GRID_SAMPLE_BACKWARD(arrays, mode, padding_mode, align_corners, data_format, needs))


def _options(
    mode: Any, padding_mode: Any, align_corners: Any, data_format: Any, needs: Any = ("input", "grid")
) -> GridSampleOptions:
    checks.choice("mode", mode, MODES)
    checks.choice("padding_mode", padding_mode, PADDING_MODES)
    checks.boolean("align_corners", align_corners)
    checks.choice("data_format", data_format, DATA_FORMATS)
    names = checks.names("needs", needs, ("input", "grid"))
    return GridSampleOptions(mode, padding_mode, align_corners, data_format, names)


def _sampling(input: Spec, grid: Spec, options: GridSampleOptions) -> tuple[Sampling, tuple[int, ...]]:
    """Check the arrays of a call; return it and the output's shape (N, C, O...)."""
    x = checked_image("input", input, options.data_format, (1, 2, 3))
    checks.coordinate_dtype("grid", grid, "input", input.dtype)
    n = len(x.space)
    names = ("D_out", "H_out", "W_out")[3 - n :]
    other = grid.shape[-1:] != (n,)  # dimensions than those of the input, or those of one without a batch
    read_as = f" for input {axes(n, options.data_format == 'channels_last')} = {input.shape}" if other else ""
    checks.shape("grid", grid, (f"N={x.shape[0]}", *names, n), read_as)
    call = Sampling(x, prod(grid.shape[1:-1]), grid.dtype, options.mode, options.padding_mode, options.align_corners)
    return call, (*x.shape[:2], *grid.shape[1:-1])


def _infer_grid_sample(specs: tuple[Spec, ...], options: GridSampleOptions) -> tuple[Output]:
    input, grid = specs
    last = options.data_format == "channels_last"
    channels, out = input.shape[-1 if last else 1], grid.shape[1:-1]
    return (Output(ordered(input.shape[0], channels, out, last), input.dtype),)


def _prepare_grid_sample(specs: tuple[Spec, ...], options: GridSampleOptions, target: Target) -> Plan:
    input, grid = specs
    call, shape = _sampling(input, grid, options)
    if not is_contiguous(grid):
        return Plan(target, 2, copies=(1,))
    output = packed(shape, input.dtype, channels_last=options.data_format == "channels_last")
    return plan_forward(call, output, *_infer_grid_sample(specs, options), target)


def _prepare_grid_sample_backward(specs: tuple[Spec, ...], options: GridSampleOptions, target: Target) -> Plan:
    grad_output, input, grid = specs
    call, shape = _sampling(input, grid, options)
    checks.same_dtype("grad_output", grad_output, "input", input.dtype)
    last = options.data_format == "channels_last"
    checks.shape("grad_output", grad_output, ordered(shape[0], shape[1], shape[2:], last))
    output: Image = image(grad_output, last)
    copies = (*(() if output.flat else (0,)), *(() if is_contiguous(grid) else (2,)))
    if copies:
        return Plan(target, 3, copies=copies)
    wanted_input = Output(input.shape, input.dtype) if "input" in options.needs else None
    wanted_grid = Output(grid.shape, grid.dtype) if "grid" in options.needs else None
    final = packed(call.input.shape, input.dtype, channels_last=last)
    return plan_backward(call, output, (wanted_input, wanted_grid), final, target)


def _prepare_grid_sample_double_backward(specs: tuple[Any, ...], options: GridSampleOptions, target: Target) -> Plan:
    """Plan the gradients by what the gradients are computed from, of the gradients by `grid_sample`'s arrays."""
    by_input, by_grid, grad_output, input, grid = specs
    call, shape = _sampling(input, grid, options)
    checks.same_dtype("grad_output", grad_output, "input", input.dtype)
    last = options.data_format == "channels_last"
    checks.shape("grad_output", grad_output, ordered(shape[0], shape[1], shape[2:], last))
    check_directions(DOUBLE_NAMES, (by_input, by_grid), (input, grid))
    tangent = None if by_input is None else image(by_input, last)
    images = tangent, image(grad_output, last)
    copies = unreadable(specs, {0: tangent, 2: images[1], 3: call.input})
    if copies:
        return Plan(target, 5, copies=copies)
    return plan_double_backward(call, images, specs, options.needs, target, last=last)


GRID_SAMPLE_DOUBLE_BACKWARD = Op(
    "grid_sample_double_backward",
    (*DOUBLE_NAMES, "grad_output", "input", "grid"),
    wanting(_options, ("grad_output", "input", "grid")),
    _prepare_grid_sample_double_backward,
    saved=(0, 1, 2, 3, 4),
    optional=DOUBLE_NAMES,
    coordinates=("grad_grad_grid", "grid"),
)
GRID_SAMPLE_BACKWARD = Op(
    "grid_sample_backward",
    ("grad_output", "input", "grid"),
    _options,
    _prepare_grid_sample_backward,
    GRID_SAMPLE_DOUBLE_BACKWARD,
    saved=(0, 1, 2),
    coordinates=("grid",),
)
GRID_SAMPLE = Op(
    "grid_sample",
    ("input", "grid"),
    _options,
    _prepare_grid_sample,
    GRID_SAMPLE_BACKWARD,
    saved=(0, 1),
    coordinates=("grid",),
    nonlinear=("grid",),
    infer=_infer_grid_sample,
)
