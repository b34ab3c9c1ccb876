"""Whether numbers are split for a unit of the processor that multiplies bfloat16 ones (split.cuh)."""

from typing import NamedTuple

from cudakit import cpuinfo


class Splitting(NamedTuple):
    """Into how many bfloat16 parts numbers are split, and from what size of a convolution on that pays.

    `array_parts` are those of a number of an array, 0 where it is not split, `column_parts` those of a column's. The
    rest are the least output channels of a group, terms of a sum and pixels of the batch; and by which unit.
    """

    array_parts: int = 0
    column_parts: int = 0
    least_outputs: int = 0
    least_depth: int = 0
    least_pixels: int = 192
    amx: bool = False  # else AVX512_BF16


WHOLE = Splitting()
AMX = {
    "bfloat16": Splitting(1, 2, least_outputs=32, least_depth=32, amx=True),
    "float16": Splitting(2, 2, least_outputs=48, least_depth=32, amx=True),
    "float32": Splitting(3, 3, least_outputs=48, least_depth=144, amx=True),
}
# Of numbers that may be rounded: those of float32 to 16 bits, columns of bfloat16 convolutions to 8, as on a GPU.
ROUNDED_AMX = {
    "bfloat16": Splitting(1, 1, least_outputs=32, least_depth=32, amx=True),
    "float32": Splitting(2, 2, least_outputs=48, least_depth=32, amx=True),
}
# More parts would gain nothing.
ROUNDED_AVX512_BF16 = {"bfloat16": Splitting(1, 1, least_outputs=16, least_depth=72, least_pixels=96)}


def choose_splitting(dtype: str, rounds: bool) -> Splitting:
    """Return how to split numbers of that type on this processor, which may be rounded or not."""
    tables = []
    if cpuinfo.has_amx():
        tables = [ROUNDED_AMX, AMX] if rounds else [AMX]
    elif cpuinfo.has_avx512_bf16() and rounds:
        tables = [ROUNDED_AVX512_BF16]
    return next((table[dtype] for table in tables if dtype in table), WHOLE)
