"""What a benchmark is made of: rows, the sides that compute them, and the check that all sides agree.

A family is one file with a `Family` in it (`sampling.py`), its name in `families.py`, and a `test_*.py` of a few lines;
nothing else knows what is computed.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Any]  # NumPy's, or tensors
OURS = "cudakit"
LINE_BYTES = 64
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


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
        What the family's sides need to know besides arrays; `case.flop` is the number of floating-point operations that
        the formula takes, however it is computed.
    make : callable
        Returns the arrays that are read, by name; the same ones every time.
    flips : dict
        Number of a result -> share of its elements that may differ by more than the tolerance: those beside a
        discontinuity.
    dtype : str
        What the arrays, which are made in float32, are turned into.
    """

    name: str
    section: str
    case: Any
    make: Callable[[], Arrays]
    flips: Mapping[int, float] = field(default_factory=dict, hash=False)
    dtype: str = "float32"

    @property
    def tolerance(self) -> float:
        """Return the largest difference between two sides, in units of the largest element of a result."""
        return TOLERANCES[self.dtype]


def in_dtype(row: Row, dtype: str) -> Row:
    """Return the same row on arrays of a dtype."""
    if dtype == row.dtype:
        return row
    return replace(row, name=f"{row.name}_{dtype}", section=f"{row.section}, {dtype}", dtype=dtype)


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


class Tiny(NamedTuple):
    """A call on next to nothing: what it takes is overhead.

    `title` says which call it is, `setup` and `call` are its source text for a fresh interpreter, `row` is its row.
    """

    title: str
    setup: str
    call: str
    row: Row


class Family(NamedTuple):
    """Operators that are measured together.

    `rows(small)` and `gpu_rows(small)` list the rows, in small sizes for a quick check. `sides` has cudakit first;
    those in `on_tensors` take PyTorch's tensors in place of NumPy's arrays, too. `rivals` are the peers whose fastest
    one is the row's yardstick. `floors` compute something less, so that their results are not compared. `memory` names
    the rows whose peak memory is measured; `notes` are printed with the tables.
    """

    name: str
    title: str
    rows: Callable[[bool], list[Row]]
    gpu_rows: Callable[[bool], list[Row]]
    sides: dict[str, Side]
    on_tensors: tuple[str, ...]
    rivals: tuple[str, ...]
    tiny: Tiny
    floors: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def only(self, names: Container[str]) -> "Family":
        """Return the family with cudakit and those of its peers."""
        return self._replace(sides={name: side for name, side in self.sides.items() if name in names or name == OURS})


def in_layout(array: Array, last: bool) -> Array:
    """Return (N, C, S...) as it is, or in memory as (N, S..., C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array


def aligned(arrays: Arrays) -> Arrays:
    """Return copies that begin at lines of the cache: where NumPy begins is chance, and makes a tenth of the time."""
    return {name: placed(array, LINE_BYTES) for name, array in arrays.items()}


def placed(array: Array, multiple: int) -> Array:
    """Return a copy whose address is a multiple of so many bytes."""
    memory = np.empty(array.nbytes + multiple, np.uint8)
    first = -memory.ctypes.data % multiple
    found = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def to_numpy(value: Any) -> tuple[Array, ...]:
    """Return one result or several as NumPy arrays; those that were not asked for are left out."""
    items = value if isinstance(value, tuple | list) else (value,)
    return tuple(_numpy(item) for item in items if item is not None)


def _numpy(item: Any) -> Array:
    return np.asarray(item.detach().float().cpu() if hasattr(item, "detach") else item)  # NumPy has no bfloat16


def traffic(row: Row, arrays: Arrays, results: tuple[Array, ...]) -> int:
    """Return the bytes of reading every argument once and writing every result once."""
    itemsize = 4 if row.dtype == "float32" else 2
    return itemsize * sum(int(prod(array.shape)) for array in (*arrays.values(), *results))


def largest_error(found: tuple[Array, ...], expected: tuple[Array, ...]) -> float:
    """Return the largest difference, in units of the largest element of the result that it is in."""
    return max(float(_differences(one, other).max()) for one, other in zip(found, expected, strict=True))


def _differences(found: Array, expected: Array) -> Array:
    difference: Array = np.abs(found - expected) / (np.abs(expected).max() + 1e-30)
    return difference


def disagreement(row: Row, found: tuple[Array, ...], expected: tuple[Array, ...], slack: float = 1.0) -> str:
    """Return how two sides differ by more than rounding, or an empty string."""
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.shape != other.shape:
            return f"result {position} has shape {one.shape} instead of {other.shape}"
        difference = _differences(one, other)
        share = np.mean(~(difference <= row.tolerance * slack))
        if share > row.flips.get(position, 0.0) or np.isnan(difference).any():
            return f"{share:.2%} of result {position} differ, by up to {difference.max():.2g} of the largest element"
    return ""
