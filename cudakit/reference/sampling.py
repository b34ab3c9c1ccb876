"""The sampling operators in plain float64 NumPy: what the kernels are tested against.

Written from the formulas of [1]_ and [2]_ and sharing no code with the kernels. Everything is
computed in float64, whatever comes in.

References
----------
.. [1] M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", arXiv:1506.02025.
.. [2] R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans. ASSP 29(6), 1981.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cudakit.reference.taps import FAR, Floats, Ints, Taps, add_at, combinations, product

MODES = ("nearest", "bilinear", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
CUBIC_A = -0.75  # the free parameter of Keys' kernel


def affine_grid(theta: ArrayLike, size: Sequence[int], align_corners: bool = False) -> Floats:
    r"""Lattice points of an output of shape `size`, mapped by one affine transform per batch entry.

    .. math:: grid[n, o, :] = theta[n] \, (x_o, y_o[, z_o], 1)^T

    where :math:`x_o` runs over pixel centres: ``-1 + 2 o / (W - 1)`` with `align_corners` (0 for a single pixel),
    ``-1 + (2 o + 1) / W`` without.

    Parameters
    ----------
    theta : array_like, shape (N, n, n + 1)
    size : (N, C, O...), the shape of the image to be sampled, with n = 2 or 3 spatial sizes
    align_corners : bool

    Returns
    -------
    ndarray, shape (N, O..., n)
        The last axis is (x, y[, z]): the innermost dimension first.

    Examples
    --------
    >>> affine_grid([[[1, 0, 0], [0, 1, 0]]], (1, 1, 1, 2)).tolist()
    [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    lattice = _lattice(size[2:], align_corners)
    points: Floats = np.einsum("nij,...j->n...i", np.asarray(theta, np.float64), lattice)
    return points


def affine_grid_backward(grad_grid: ArrayLike, size: Sequence[int], align_corners: bool = False) -> Floats:
    """Gradient of `affine_grid` with respect to `theta`.

    ``grad_theta[n] = sum_o grad_grid[n, o] (x_o, y_o[, z_o], 1)^T``

    Examples
    --------
    >>> affine_grid_backward([[[[1, 0], [1, 0]]]], (1, 1, 1, 2)).tolist()
    [[[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]
    """
    gradient, lattice = np.asarray(grad_grid, np.float64), _lattice(size[2:], align_corners)
    subscripts = "nyxi,yxj->nij" if lattice.ndim == 3 else "nzyxi,zyxj->nij"
    grad_theta: Floats = np.einsum(subscripts, gradient, lattice)
    return grad_theta


def grid_sample(
    input: ArrayLike,
    grid: ArrayLike,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Floats:
    """Sample `input` at the normalised points of `grid`.

    Parameters
    ----------
    input : array_like, shape (N, C, S...)
    grid : array_like, shape (N, O..., n)
        Points (x[, y[, z]]), the innermost dimension first; -1 and 1 are the ends of the image.
    mode : "nearest", "bilinear" (n-linear) or "bicubic" (n-cubic)
    padding_mode : "zeros", "border" or "reflection"
    align_corners : bool
        Whether -1 and 1 mean the centres of the first and last pixel instead of their outer edges.

    Returns
    -------
    ndarray, shape (N, C, O...)

    Examples
    --------
    >>> grid_sample([[[10, 20, 30]]], [[[0.0], [-2.0], [1 / 3]]]).tolist()
    [[[20.0, 0.0, 25.0]]]
    """
    image, axes = _prepare(input, grid, mode, padding_mode, align_corners)
    values = np.zeros((*image.shape[:2], axes[0].pixel.shape[-1]))
    for index, valid, taps in combinations(axes, np.shape(input)[2:]):
        weight = np.prod([t.weight for t in taps], axis=0)
        values += product(valid, weight, np.take_along_axis(image, index, axis=2))
    return values.reshape(*image.shape[:2], *np.shape(grid)[1:-1])


def grid_sample_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    grid: ArrayLike,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tuple[Floats, Floats]:
    """Gradients of `grid_sample` with respect to `input` and `grid`.

    ``grad_input[i] = sum of grad_output * w_1 ... w_n`` over the samples that read pixel i, and
    ``grad_grid_d = sum over taps and channels of grad_output * input[i] * w_d' * product of the other weights``.
    At a knot the slope is the right-hand one; where border padding holds a coordinate at the edge it is 0.

    Returns
    -------
    (grad_input, grad_grid), of the shapes of `input` and `grid`

    Examples
    --------
    >>> grad_input, grad_grid = grid_sample_backward([[[1.0]]], [[[10, 20, 30]]], [[[1 / 3]]])
    >>> grad_input.tolist(), grad_grid.tolist()
    ([[[0.0, 0.5, 0.5]]], [[[15.0]]])
    """
    image, axes = _prepare(input, grid, mode, padding_mode, align_corners)
    gradient = np.asarray(grad_output, np.float64).reshape(*image.shape[:2], axes[0].pixel.shape[-1])
    grad_input = np.zeros(image.shape)
    grad_grid = np.zeros((image.shape[0], gradient.shape[2], len(axes)))
    for index, valid, taps in combinations(axes, np.shape(input)[2:]):
        weight = np.prod([t.weight for t in taps], axis=0)
        add_at(grad_input, index, product(valid, weight, gradient))
        if mode == "nearest":
            continue  # piecewise constant in the grid
        pixels = np.take_along_axis(image, index, axis=2)
        for d in range(len(axes)):
            slope = np.prod([t.slope if e == d else t.weight for e, t in enumerate(taps)], axis=0)
            grad_grid[..., -1 - d] += product(valid, slope, pixels, gradient).sum(axis=1)
    return grad_input.reshape(np.shape(input)), grad_grid.reshape(np.shape(grid))


def _lattice(sizes: Sequence[int], align_corners: bool) -> Floats:
    """Homogeneous lattice points (x, y[, z], 1), shape (O..., n + 1)."""
    axes = []
    for size in sizes:
        o = np.arange(size, dtype=np.float64)
        if align_corners:
            axes.append(-1 + 2 * o / (size - 1) if size > 1 else np.zeros(1))
        else:
            axes.append(-1 + (2 * o + 1) / size)
    points = np.meshgrid(*axes, indexing="ij")[::-1]
    return np.stack([*points, np.ones(tuple(sizes))], axis=-1)


def _prepare(
    input: ArrayLike, grid: ArrayLike, mode: str, padding_mode: str, align_corners: bool
) -> tuple[Floats, list[Taps]]:
    """`input` as (N, C, pixels), and the taps of every dimension, slowest dimension first."""
    for name, value, allowed in (("mode", mode, MODES), ("padding_mode", padding_mode, PADDING_MODES)):
        if value not in allowed:
            raise ValueError(f"grid_sample: {name} must be one of {allowed}, got {value!r}")
    image, points = np.asarray(input, np.float64), np.asarray(grid, np.float64)
    n_batch, channels, *sizes = image.shape
    flat = points.reshape(n_batch, 1, int(np.prod(points.shape[1:-1])), len(sizes))
    axes = [_axis_taps(flat[..., -1 - d], size, mode, padding_mode, align_corners) for d, size in enumerate(sizes)]
    return image.reshape(n_batch, channels, int(np.prod(sizes))), axes


def _axis_taps(g: Floats, size: int, mode: str, padding_mode: str, align_corners: bool) -> Taps:
    """Taps of one dimension of `size` pixels at the normalised coordinates `g`."""
    with np.errstate(invalid="ignore", over="ignore"):
        x = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
    scale = (size - 1) / 2 if align_corners else size / 2
    near = np.abs(x) < FAR  # False for NaN
    x_near = np.where(near, x, 0.0)
    if mode == "bicubic":
        pixel, weight, slope = _cubic_taps(x_near, size, padding_mode, align_corners)
    else:
        position, factor = _pad_coordinate(x_near, size, padding_mode, align_corners)
        build = _nearest_taps if mode == "nearest" else _linear_taps
        pixel, weight, slope = build(position, factor)
    inside = (pixel >= 0) & (pixel < size)
    edge = np.where(x > 0, size - 1, 0)  # the limit of border and reflection padding on that side
    readable = near if padding_mode == "zeros" else ~np.isnan(g)
    return Taps(
        pixel=np.where(near, np.clip(pixel, 0, size - 1), edge),
        weight=weight,
        slope=np.where(near, scale * slope, 0.0),
        valid=readable & (inside | ~near),
    )


def _pad_coordinate(x: Floats, size: int, padding_mode: str, align_corners: bool) -> tuple[Floats, Floats]:
    """Return what padding puts in the place of the coordinate `x`, and its derivative by `x` (0 at and past a clip)."""
    factor = np.ones_like(x)
    if padding_mode == "zeros":
        return x, factor
    if padding_mode == "reflection":
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if span == 0:
            return np.zeros_like(x), np.zeros_like(x)
        flips, rest = np.divmod(np.abs(x - low), span)
        odd = flips % 2 == 1
        factor = np.where(odd, -1.0, 1.0) * np.where(x < low, -1.0, 1.0)
        x = low + np.where(odd, span - rest, rest)
    factor = np.where((x <= 0) | (x >= size - 1), 0.0, factor)
    return np.clip(x, 0.0, size - 1.0), factor


def _pad_index(index: Ints, size: int, padding_mode: str, align_corners: bool) -> Ints:
    """Return what padding puts in the place of pixel `index`; zeros padding leaves it outside."""
    if padding_mode == "zeros":
        return index
    if padding_mode == "border":
        return np.clip(index, 0, size - 1)
    if align_corners:  # ... 2 1 | 0 1 2 ... , the edge pixel once
        phase = index % (period := max(2 * (size - 1), 1))
        return np.minimum(phase, period - phase)
    phase = index % (2 * size)  # ... 1 0 | 0 1 2 ... , the edge pixel twice
    return np.minimum(phase, 2 * size - 1 - phase)


def _nearest_taps(x: Floats, _: Floats) -> tuple[Ints, Floats, Floats]:
    index = np.rint(x).astype(np.int64)[None]  # half to even
    return index, np.ones(index.shape), np.zeros(index.shape)


def _linear_taps(x: Floats, factor: Floats) -> tuple[Ints, Floats, Floats]:
    cell = np.floor(x)
    t = x - cell
    index = np.stack([cell, cell + 1]).astype(np.int64)
    return index, np.stack([1 - t, t]), np.stack([-factor, factor])


def _cubic_taps(x: Floats, size: int, padding_mode: str, align_corners: bool) -> tuple[Ints, Floats, Floats]:
    """Four taps around the unclipped `x`, each through the padding on its own."""
    cell = np.floor(x)
    reach = np.arange(-1, 3).reshape(4, *[1] * x.ndim)
    index = _pad_index(cell.astype(np.int64) + reach, size, padding_mode, align_corners)
    return index, *_keys_kernel((x - cell) - reach)


def _keys_kernel(s: Floats) -> tuple[Floats, Floats]:
    """Keys' cubic convolution kernel [2]_ and its derivative at the signed distance `s`, where |s| <= 2."""
    a, r = CUBIC_A, np.abs(s)
    inner = ((a + 2) * r - (a + 3)) * r * r + 1
    outer = ((a * r - 5 * a) * r + 8 * a) * r - 4 * a
    d_inner = (3 * (a + 2) * r - 2 * (a + 3)) * r
    d_outer = (3 * a * r - 10 * a) * r + 8 * a
    return np.where(r <= 1, inner, outer), np.where(r <= 1, d_inner, d_outer) * np.sign(s)
