"""How close results must be, and how to stay clear of the places where rounding may pick the other cell."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NUMPY_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# dtype -> (rtol, atol). Half types compute in float32 and round once, so only their rtol is their own epsilon.
TOLERANCES = {
    "float64": (1e-10, 1e-10),
    "float32": (1e-5, 1e-5),
    "float16": (2.0**-10, 1e-5),
    "bfloat16": (2.0**-7, 1e-5),
}

KNOT_BAND = 1e-3  # pixels; coordinates are computed to about size * 1e-7 pixels, in float32 at the least


def rounded(values: ArrayLike, dtype: str) -> Floats:
    """Return `values` as `dtype` holds them, in float64: what the oracle must be fed."""
    return np.asarray(values).astype(NUMPY_DTYPES[dtype]).astype(np.float64)


def pixel_coordinates(grid: Floats, sizes: Sequence[int], align_corners: bool) -> Floats:
    """Return `grid` (..., n) in pixels; `sizes` are those of the input, slowest dimension first."""
    size = np.array(sizes[::-1], np.float64)
    return (grid + 1) / 2 * (size - 1) if align_corners else ((grid + 1) * size - 1) / 2


def near_knot(grid: Floats, sizes: Sequence[int], align_corners: bool) -> NDArray[np.bool_]:
    """Where a coordinate is so near a (half-)integer that rounding decides on cell, nearest pixel or reflection."""
    twice = 2 * pixel_coordinates(grid, sizes, align_corners)
    near = np.abs(twice - np.rint(twice)) < 2 * KNOT_BAND
    exact = np.array([align_corners and size == 1 for size in sizes[::-1]])  # always pixel 0, in any arithmetic
    return near & ~exact


def grid_away_from_knots(
    rng: np.random.Generator,
    shape: Sequence[int],
    sizes: Sequence[int],
    align_corners: bool,
    dtype: str,
    reach: float = 1.6,
) -> Floats:
    """Draw normalised coordinates in [-reach, reach], exact in `dtype`, none of them near a knot."""
    grid = rounded(rng.uniform(-reach, reach, shape), dtype)
    while (again := near_knot(grid, sizes, align_corners)).any():
        grid[again] = rounded(rng.uniform(-reach, reach, np.count_nonzero(again)), dtype)
    return grid


def offsets_away_from_knots(rng: np.random.Generator, shape: Sequence[int], dtype: str, reach: float) -> Floats:
    """Draw offsets in [-reach, reach] pixels, exact in `dtype`, none near an integer: regular places are integers."""
    offset = rounded(rng.uniform(-reach, reach, shape), dtype)
    while (again := np.abs(offset - np.rint(offset)) < KNOT_BAND).any():
        offset[again] = rounded(rng.uniform(-reach, reach, np.count_nonzero(again)), dtype)
    return offset


def assert_close(
    actual: Floats,
    expected: Floats,
    dtype: str,
    *,
    scale: float = 1.0,
    band: NDArray[np.bool_] | None = None,
    band_share: float = 0.01,
) -> None:
    """Compare within the tolerance of `dtype`; where `band` is True any value may do, but few places may be in it.

    The absolute part grows with the largest expected value (sums carry the rounding of their largest terms) and with
    `scale`, for problems that amplify rounding, such as coordinates in large images.
    """
    assert actual.shape == expected.shape
    rtol, atol = TOLERANCES[dtype]
    largest = max(1.0, np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    if band is not None:
        assert np.mean(band) <= band_share, "the band holds too many samples for the check to mean anything"
        actual = np.where(band, expected, actual)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=scale * atol * largest)
