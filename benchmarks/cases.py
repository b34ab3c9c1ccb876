"""What a benchmark is made of: rows, the sides that compute them, and the check that all sides agree.

A family is one file with a `Family` in it (`sampling.py`), one line in `FAMILIES` of `run.py`, and a `test_*.py` of a
few lines; nothing else knows what is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]
OURS = "cudakit"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    name : str
        Unique, and short enough to be typed.
    section : str
        The table that the row stands in.
    case : object
        What the family's sides need to know besides arrays.
    make : callable
        Returns the arrays that are read, by name; the same ones every time.
    tolerance : float
        Largest difference between two sides, in units of the largest result.
    flips : float
        Share of elements that may differ by more: those beside a discontinuity.
    """

    name: str
    section: str
    case: Any
    make: Callable[[], Arrays]
    tolerance: float = 1e-4
    flips: float = 0.0


class Prepared(NamedTuple):
    """A side that is ready to go.

    `call` is what gets timed. `results` turns what it returns into NumPy arrays in the layout of cudakit's. `slack`
    multiplies the tolerance, for peers that compute with fewer bits.
    """

    call: Callable[[], Any]
    results: Callable[[Any], tuple[Array, ...]]
    slack: float = 1.0


# Makes a side from (row, its arrays, number of threads); None where a library has no such operator.
Side = Callable[[Row, Arrays, int], Prepared | None]


class Family(NamedTuple):
    """Operators that are measured together.

    `rows(small)` lists the rows, in small sizes for a quick check; `sides` has cudakit first; `rivals` are the peers
    whose fastest one is the row's yardstick; `notes` are printed below the tables.
    """

    name: str
    rows: Callable[[bool], list[Row]]
    sides: dict[str, Side]
    rivals: tuple[str, ...]
    notes: tuple[str, ...] = ()


def traffic(arrays: Arrays, results: tuple[Array, ...]) -> int:
    """Return the bytes of reading every argument once and writing every result once."""
    return sum(array.nbytes for array in (*arrays.values(), *results))


def disagreement(row: Row, found: tuple[Array, ...], expected: tuple[Array, ...], slack: float = 1.0) -> str:
    """Return how two sides differ by more than rounding, or an empty string."""
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.shape != other.shape:
            return f"result {position} has shape {one.shape} instead of {other.shape}"
        difference = np.abs(one - other) / (np.abs(other).max() + 1e-30)
        share = np.mean(~(difference <= row.tolerance * slack))
        if share > row.flips:
            return f"{share:.2%} of result {position} differ, by up to {difference.max():.2g} of the largest element"
    return ""
