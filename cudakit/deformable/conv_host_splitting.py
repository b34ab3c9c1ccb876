"""Whether numbers are split for a unit of the processor that multiplies bfloat16 ones (split.cuh)."""

from typing import NamedTuple

from cudakit import cpuinfo


class Splitting(NamedTuple):
    """Into how many parts numbers are split, and from what size on splitting pays.

    `outputs`, `depth` and `pixels` are the least output channels, terms of a sum and pixels of an image.
    """

    data: int = 0  # of a number of an array; 0: not split
    values: int = 0  # of a column's
    outputs: int = 0
    depth: int = 0
    pixels: int = 192
    tiles: bool = False  # registers, or vectors


WHOLE = Splitting()
TILES = {
    "bfloat16": Splitting(1, 2, outputs=32, depth=32, tiles=True),
    "float16": Splitting(2, 2, outputs=48, depth=32, tiles=True),
    "float32": Splitting(3, 3, outputs=48, depth=144, tiles=True),
}
# Of numbers that may be rounded: those of float32 to 16 bits, columns of bfloat16 convolutions to 8, as on a GPU.
ROUNDED_TILES = {
    "bfloat16": Splitting(1, 1, outputs=32, depth=32, tiles=True),
    "float32": Splitting(2, 2, outputs=48, depth=32, tiles=True),
}
ROUNDED_DOTS = {"bfloat16": Splitting(1, 1, outputs=16, depth=72, pixels=96)}  # more parts would gain nothing


def choose_splitting(dtype: str, rounds: bool) -> Splitting:
    """Return how to split numbers of that type on this processor, which may be rounded or not."""
    tables = []
    if cpuinfo.has_amx():
        tables = [ROUNDED_TILES, TILES] if rounds else [TILES]
    elif cpuinfo.has_avx512_bf16() and rounds:
        tables = [ROUNDED_DOTS]
    return next((table[dtype] for table in tables if dtype in table), WHOLE)
