"""A kernel's struct of parameters, packed: every field is 8 bytes, pointers first."""

import struct
from functools import cache

from cudakit.source import Kernel


@cache
def _scalar_layout(kernel: Kernel) -> tuple[struct.Struct, tuple[int, ...]]:
    counts = tuple(count for _, count in kernel.fields[kernel.pointers :])
    return struct.Struct(f"{sum(counts)}q"), counts


def pack_scalars(kernel: Kernel, *values: int | tuple[int, ...]) -> bytes:
    """Pack the fields after the pointers.

    Parameters
    ----------
    kernel : Kernel
        Whose struct.
    *values : int or tuple of int
        One for each field; a shorter tuple is filled up with zeros.
    """
    layout, counts = _scalar_layout(kernel)
    numbers: list[int] = []
    for value, count in zip(values, counts, strict=True):
        given = value if isinstance(value, tuple) else (value,)
        numbers += (*given, *(0,) * (count - len(given)))
    return layout.pack(*numbers)


def inverses(*divisors: int) -> tuple[int, ...]:
    """Return what a GPU multiplies by rather than divide; see ``take_digit`` in ``core.cuh``."""
    return tuple((2**32 - 1) // max(divisor, 1) for divisor in divisors)
