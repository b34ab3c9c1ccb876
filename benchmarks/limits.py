"""What the machine can do at best: the speed of copies and of matrix products, measured beside the rows.

The time that a row cannot go below, if every argument and result travels once and every operation runs at the speed of
a matrix product, is the roofline of Williams, Waterman and Patterson (2009, doi:10.1145/1498765.1498785).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import matmul
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from .cases import OURS, placed
from .measure import Result, Sample, burst, calm
from .peers import load

COPY_BYTES = 256 * 10**6
PAGE_BYTES = 4096  # where targets begin 16 bytes before sources in a page, Zen 3 copies at a third of its speed
GEMM_SIZE = 1024
REPEATS = 7


class Limits(NamedTuple):
    """GB/s of a copy, read and written, and GFLOP/s of a matrix product by dtype."""

    copy_gb_per_s: float
    gemm_gflop_per_s: dict[str, float]


def copy_samples(threads: int) -> list[Sample]:
    """Time copies of 256 MB by that many threads."""
    source, target = (placed(np.full(COPY_BYTES, value, np.uint8), PAGE_BYTES) for value in (1, 0))
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return _repeated(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def gemm_samples(dtype: str) -> list[list[Sample]]:
    """Time products of matrices by PyTorch, and by NumPy's library of float32 ones, to which others may be widened."""
    matrix = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32)
    torch = load("torch")
    found = [_repeated(lambda: matrix @ matrix)]
    if torch is not None:
        for name in dict.fromkeys(("float32", dtype)):
            tensor = torch.from_numpy(matrix).to(getattr(torch, name))
            found.append(_repeated(partial(matmul, tensor, tensor)))
    return found


def _repeated(call: Callable[[], Any]) -> list[Sample]:
    return [sample for _ in range(REPEATS + 1) for sample in burst(call, 1)][1:]


def on_cpu(threads: int, dtypes: Sequence[str], measured: Callable[[], Any]) -> tuple[Any, Limits]:
    """Measure the limits before and after something else."""
    copies, products = copy_samples(threads), {dtype: gemm_samples(dtype) for dtype in dtypes}
    result = measured()
    copies += copy_samples(threads)
    gemm = {}
    for dtype, first in products.items():  # whichever library is faster
        seconds = min(_typical([*one, *other]) for one, other in zip(first, gemm_samples(dtype), strict=True))
        gemm[dtype] = 2 * GEMM_SIZE**3 / seconds / 1e9
    return result, Limits(2 * COPY_BYTES / _typical(copies) / 1e9, gemm)


def typical(found: Sequence[Limits]) -> Limits:
    """Return what several processes say together."""
    dtypes = found[0].gemm_gflop_per_s
    gemm = {dtype: median(one.gemm_gflop_per_s[dtype] for one in found) for dtype in dtypes}
    return Limits(median(one.copy_gb_per_s for one in found), gemm)


def _typical(samples: Sequence[Sample]) -> float:
    return median(calm(samples)[0])


def against(row: Result, limits: Limits) -> Result:
    """Return what a row reaches: GB/s, GFLOP/s, and the share of the roofline, the least time over cudakit's."""
    seconds = 1e-3 * row["sides"][OURS]["median_ms"]
    travel = row["bytes"] / limits.copy_gb_per_s
    compute = row["flop"] / limits.gemm_gflop_per_s[row["dtype"]]
    return {
        "gb_per_s": row["bytes"] / seconds / 1e9,
        "gflop_per_s": row["flop"] / seconds / 1e9,
        "roofline_share": max(travel, compute) / 1e9 / seconds,
        "bound": "memory" if travel > compute else "arithmetic",
    }
