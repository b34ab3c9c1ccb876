"""The footprint of a sample, dimension by dimension.

A sample at the pixel coordinate ``x = (x_1, ..., x_n)`` is a sum over *taps*, the input pixels near it:

    value(x) = sum_t  w_1(t_1) * ... * w_n(t_n) * input[i_1(t_1), ..., i_n(t_n)]

so each dimension is described by its taps alone (pixel index, weight, slope of the weight, readable or not), and the
values and all gradients are loops over the products of taps.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FAR = 2.0**31  # pixels; from here on a coordinate only says which side it lies on


class Taps(NamedTuple):
    """The pixels that one dimension of a sample reads; every field has shape (taps, N, 1, L)."""

    pixel: Ints  # which pixel, always a legal index
    weight: Floats
    slope: Floats  # d weight / d coordinate
    valid: Bools  # where False the pixel is not read and counts as 0


def combinations(axes: Sequence[Taps], sizes: Sequence[int]) -> Iterator[tuple[Ints, Bools, list[Taps]]]:
    """One tap of each dimension in all ways: flat pixel index, whether every part is readable, and the taps.

    The index and the rest have shape (N, 1, L), to go with pixels of shape (N, C, P).
    """
    for choice in itertools.product(*(range(len(taps.pixel)) for taps in axes)):
        taps = [Taps(*(field[t] for field in axis)) for t, axis in zip(choice, axes, strict=True)]
        index, valid = np.zeros_like(taps[0].pixel), np.ones_like(taps[0].valid)
        for tap, size in zip(taps, sizes, strict=True):
            index, valid = index * size + tap.pixel, valid & tap.valid
        yield index, valid, taps


def product(valid: Bools, *factors: Floats) -> Floats:
    """Multiply where valid; elsewhere 0 whatever the factors are (a NaN pixel outside must not show)."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(valid, functools.reduce(np.multiply, factors), 0.0)


def add_at(target: Floats, index: Ints, values: Floats) -> None:
    """``target[n, c, index[n, 0, l]] += values[n, c, l]``, repeated indices included."""
    n, c = np.ogrid[: target.shape[0], : target.shape[1]]
    np.add.at(target, (n[:, :, None], c[:, :, None], index), values)
