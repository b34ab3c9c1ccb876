"""Gradients of gradients: the derivatives, in a direction, of the oracle's values and gradients.

All gradients are derivatives of one number, so the gradients of gradients, times a direction and summed, are the
derivatives of all first ones in this direction, which differences of the oracle's tell to about 1e-8.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .conftest import Arrays
from .tolerances import Floats, assert_close, rounded

DIFFERENCES = 1e3  # as float64's own rounding, are those of differences
STEP = 2e-5  # below the distance that problems keep from knots
HALF = ("float16", "bfloat16")

Values = Sequence[Floats | None]


def derivatives(function: Callable[..., Values], given: Values, directions: Values) -> list[Floats | None]:
    """Return the derivatives of a function's results in a direction, None for a result that is not there."""

    def at(step: float) -> Values:
        moved = zip(given, directions, strict=True)
        return function(*[x if x is None or d is None else x + step * d for x, d in moved])

    pairs = zip(at(STEP), at(-STEP), strict=True)
    return [None if ahead is None else (ahead - behind) / (2 * STEP) for ahead, behind in pairs]


def like(rng: np.random.Generator, values: Values, *dtypes: str) -> list[Floats | None]:
    """Draw a direction for each of some arrays."""
    pairs = zip(values, dtypes, strict=True)
    return [None if x is None else rounded(rng.normal(size=x.shape), dtype) for x, dtype in pairs]


def check(
    arrays: Arrays,
    found: Sequence[Any],
    expected: Values,
    dtypes: Sequence[str],
    names: Sequence[str],
    scale: float = 1.0,
) -> None:
    """Compare results with what differences say, in the channels-first format."""
    for one, values, dtype, name in zip(found, expected, dtypes, names, strict=True):
        assert (one is None) == (values is None), name
        if values is not None:
            assert_close(arrays.back(one), values, dtype, scale=DIFFERENCES if dtype == "float64" else scale)
