"""The grid generator of spatial transformers (arXiv 1506.02025, section 3.2), with its gradient."""

from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, Spec, is_contiguous
from cudakit.double_backward import wanting
from cudakit.errors import InvalidArgument
from cudakit.layout import CUDA_THREADS, MOST_ELEMENTS, PARTIAL_SUM_BYTES, is_wide
from cudakit.op import Op
from cudakit.plan import NULL, Output, Plan, Slot, Target
from cudakit.source import Kernel, type_constants

FIELDS = (
    *((name, 1) for name in ("theta", "grid", "grad_grid", "partial", "grad_theta")),
    *((name, 1) for name in ("items", "chunks", "align_corners")),
    ("size", 3),
)
FORWARD, PARTIAL, TOTAL = (
    Kernel("affine_grid.cu", name, "AffineGridParams", FIELDS, pointers=5)
    for name in ("affine_grid", "affine_grid_backward_partial", "affine_grid_backward_total")
)
HOST_TILE = 64
SUM_LANES = 32  # that share an item on a GPU
CHUNK_PIXELS = 4096  # pixels that one item of the backward pass sums
FEWEST_PIXELS = 256  # of a chunk, where a GPU has too few of them


class AffineGridOptions(NamedTuple):
    """What `affine_grid` takes besides arrays."""

    batch: int
    space: tuple[int, ...]
    align_corners: bool
    needs: tuple[str, ...] = ("theta",)


def affine_grid(theta: Any, size: Any, align_corners: bool = False) -> Any:
    """Make a grid of sampling positions from an affine transform.

    ``grid[n, o] = theta[n] @ (x_o, y_o[, z_o], 1)`` (arXiv 1506.02025, equation 1), where the output pixel o has the
    coordinates x_o, y_o, z_o in [-1, 1].

    Parameters
    ----------
    theta : array, shape (N, n, n + 1)
        The transforms, for n = 2 or 3 dimensions; float16, bfloat16, float32 or float64.
    size : tuple of int
        (N, C, H, W) or (N, C, D, H, W): the shape of the images that the grid will sample.
    align_corners : bool
        Whether -1 and 1 are the centres of the outer pixels (True) or their outer edges (False).

    Returns
    -------
    array, shape (N, H, W, 2) or (N, D, H, W, 3)
        The grid, x first, of the kind, dtype and device of `theta`.

    Raises
    ------
    ValueError
        If a shape or size does not fit.
    TypeError
        If `theta` is no floating array, or an option is of another type.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> half_turn = np.array([[[-1.0, 0, 0], [0, -1, 0]]], np.float32)
    >>> cudakit.affine_grid(half_turn, (1, 1, 2, 2))[0, 0]
    array([[ 0.5,  0.5],
           [-0.5,  0.5]], dtype=float32)
    """
    return AFFINE_GRID((theta,), size, align_corners)[0]


def affine_grid_backward(grad_grid: Any, size: Any, align_corners: bool = False) -> Any:
    """Return the gradient of `affine_grid` by `theta`.

    Parameters
    ----------
    grad_grid : array, shape (N, H, W, 2) or (N, D, H, W, 3)
        The gradient by the grid; float16, bfloat16, float32 or float64.
    size, align_corners
        As for `affine_grid`.

    Returns
    -------
    array, shape (N, n, n + 1)
        ``sum over o of grad_grid[n, o] (x_o, y_o[, z_o], 1)``, added up in the same order on every run; of the kind,
        dtype and device of `grad_grid`.

    Raises
    ------
    ValueError, TypeError
        As for `affine_grid`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> cudakit.affine_grid_backward(np.ones((1, 2, 2, 2), np.float32), (1, 1, 2, 2))
    array([[[0., 0., 4.],
            [0., 0., 4.]]], dtype=float32)
    """
    return AFFINE_GRID_BACKWARD((grad_grid,), size, align_corners)[0]


def _options(size: Any, align_corners: Any) -> AffineGridOptions:
    rule = "be the ints (N, C, H, W) or (N, C, D, H, W) with positive spatial sizes"
    sizes = checks.integers("size", size, rule, length=(4, 5), minimum=0)
    if 0 in sizes[2:]:
        raise InvalidArgument("size", rule, checks.shown(sizes))
    checks.boolean("align_corners", align_corners)
    return AffineGridOptions(sizes[0], sizes[2:], align_corners)


def _infer_affine_grid(specs: tuple[Spec, ...], options: AffineGridOptions) -> tuple[Output]:
    return (Output((options.batch, *options.space, len(options.space)), specs[0].dtype),)


def _infer_affine_grid_backward(specs: tuple[Spec, ...], options: AffineGridOptions) -> tuple[Output]:
    n = len(options.space)
    return (Output((options.batch, n, n + 1), specs[0].dtype),)


def _prepare_affine_grid(specs: tuple[Spec, ...], options: AffineGridOptions, target: Target) -> Plan:
    (theta,), n = specs, len(options.space)
    checks.floating("theta", theta)
    checks.shape("theta", theta, (f"N={options.batch}", n, n + 1))
    if max(options.batch, 1) * prod(options.space) >= MOST_ELEMENTS:
        came = f"N={checks.shown(options.batch)} and {checks.shown(options.space)}"
        raise InvalidArgument("size", "have fewer than 2**56 pixels in all", came)
    if not is_contiguous(theta):
        return Plan(target, 1, copies=(0,))
    return _plan_forward(_infer_affine_grid(specs, options), options, target)


def _prepare_affine_grid_backward(specs: tuple[Spec, ...], options: AffineGridOptions, target: Target) -> Plan:
    (grad,), space = specs, options.space
    checks.floating("grad_grid", grad)
    checks.shape("grad_grid", grad, (f"N={options.batch}", *space, len(space)))
    if not is_contiguous(grad):
        return Plan(target, 1, copies=(0,))
    return _plan_backward(_infer_affine_grid_backward(specs, options), options, target)


def _add_launch(
    plan: Plan,
    kernel: Kernel,
    options: AffineGridOptions,
    slots: tuple[Slot, ...],
    *,
    dtype: str,
    lanes: int = 1,
    items: int,
    chunks: int = 0,
    work: int,
) -> None:
    """Append a kernel whose items have so many `lanes`; `chunks` are those that sums are made of."""
    target = plan.target
    batch, space = options.batch, options.space
    wide = is_wide((), batch * prod(space) * len(space) + items * lanes + 2)
    tile = HOST_TILE if target.device == CPU else 1
    constants = type_constants(dtype, dtype, wide) | {"NDIM": len(space), "TILE": tile, "LANES": lanes, "VEC": 1}
    values = (chunks, int(options.align_corners), space)
    plan.launch(kernel, constants, slots, items, values, work=work)


def _plan_forward(results: tuple[Output], options: AffineGridOptions, target: Target) -> Plan:
    """Plan `affine_grid`."""
    plan = Plan(target, 1, results)
    batch, space = options.batch, options.space
    tile = HOST_TILE if target.device == CPU else 1
    items = batch * prod(space[:-1]) * ceil_div(space[-1], tile)
    dtype, work = results[0].dtype, batch * prod(space)
    slots = (plan.input(0), plan.result(0), NULL, NULL, NULL)
    _add_launch(plan, FORWARD, options, slots, dtype=dtype, items=items, work=work)
    return plan


def _plan_backward(results: tuple[Output], options: AffineGridOptions, target: Target) -> Plan:
    """Plan `affine_grid_backward`: sums of chunks, then the sums of the sums, in the same order every time."""
    plan = Plan(target, 1, results)
    batch, space = options.batch, options.space
    numbers = prod(results[0].shape)
    lanes, pixels = 1, CHUNK_PIXELS
    if target.device != CPU:
        lanes = SUM_LANES
        pixels = max(FEWEST_PIXELS, min(pixels, batch * prod(space) * lanes // CUDA_THREADS))
    chunks = min(prod(space[:-1]), ceil_div(prod(space), pixels))
    partial = plan.workspace(chunks * numbers * PARTIAL_SUM_BYTES)
    slots = (NULL, NULL, plan.input(0), partial, plan.result(0))
    for kernel, items, work in ((PARTIAL, batch * chunks, batch * prod(space)), (TOTAL, numbers, 0)):
        sizes = {"lanes": lanes, "items": items, "chunks": chunks, "work": work}
        _add_launch(plan, kernel, options, slots, dtype=results[0].dtype, **sizes)
    return plan


# The gradient is linear: its own does not depend on it.
AFFINE_GRID_DOUBLE_BACKWARD = Op(
    "affine_grid_double_backward",
    ("grad_grad_theta",),
    wanting(_options, ("grad_grid",)),
    _prepare_affine_grid,
    saved=(0,),
    coordinates=("grad_grad_theta",),
    infer=_infer_affine_grid,
)
AFFINE_GRID_BACKWARD = Op(
    "affine_grid_backward",
    ("grad_grid",),
    _options,
    _prepare_affine_grid_backward,
    AFFINE_GRID_DOUBLE_BACKWARD,
    coordinates=("grad_grid",),
    infer=_infer_affine_grid_backward,
)
AFFINE_GRID = Op(
    "affine_grid",
    ("theta",),
    _options,
    _prepare_affine_grid,
    AFFINE_GRID_BACKWARD,
    coordinates=("theta",),
    infer=_infer_affine_grid,
)
