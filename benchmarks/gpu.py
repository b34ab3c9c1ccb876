"""Rows on a GPU: arrays are PyTorch's tensors there, and calls are timed by CUDA events."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .limits import Limits
from .measure import BURST_SECONDS, Device, Result, Sample
from .peers import load
from .tensors import exact, tensors

LONGEST_BURST = 200
COPY_BYTES = 10**9
GEMM_SIZE = 8192
REPEATS = 20
NOTES = (
    "Times are between CUDA events around calls in a row, on copies of the arrays that together exceed the L2 cache. "
    "float32 is computed without TF32.",
    "Errors in half precision are against the same arrays in float32. Peers work out coordinates in the arrays' dtype.",
)


def available() -> bool:
    """Whether PyTorch and CuPy are there and see a GPU."""
    torch, cupy = load("torch"), load("cupy")
    return torch is not None and cupy is not None and torch.cuda.is_available() and cupy.cuda.is_available()


def seconds(call: Callable[[], Any], count: int = 1) -> float:
    """Return the seconds that the GPU takes for a call, the waiting for the next launch included."""
    torch = load("torch")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end)) / count


def burst(call: Callable[[], Any], expected: float) -> list[Sample]:
    """Time some calls in a row, after one that is not counted, as one sample."""
    call()
    return [Sample(seconds(call, min(max(int(BURST_SECONDS / expected), 1), LONGEST_BURST)), disturbed=False)]


def device(where: str = "cuda") -> Device:
    """Return how rows are measured on a GPU; `where` is another device in tests."""
    torch = load("torch")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
    torch.backends.cudnn.benchmark = True  # the floor is the fastest convolution
    cache = torch.cuda.get_device_properties(0).L2_cache_size if where == "cuda" else 0
    return Device(lambda row: tensors(row, where, cache), exact, burst)


def limits(dtypes: Sequence[str], where: str = "cuda") -> Limits:
    """Measure a copy, and a matrix product in each dtype."""
    torch = load("torch")
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    copies = 2 * COPY_BYTES / repeated(lambda: target.copy_(source)) / 1e9
    rates = {}
    for dtype in dtypes:
        matrix = torch.ones(GEMM_SIZE, GEMM_SIZE, device=where).normal_().to(getattr(torch, dtype))
        rates[dtype] = 2 * GEMM_SIZE**3 / repeated(partial(torch.mm, matrix, matrix)) / 1e9
    return Limits(copies, rates)


def repeated(call: Callable[[], Any]) -> float:
    """Return the seconds of one of many calls, after one that is not counted."""
    call()
    return seconds(call, REPEATS)


def describe() -> Result:
    """Return what times on the GPU depend on."""
    torch, cupy = load("torch"), load("cupy")
    found = torch.cuda.get_device_properties(0)
    memory, cache = found.total_memory / 2**30, found.L2_cache_size / 2**20
    return {
        "gpu": f"{found.name}, sm_{found.major}{found.minor}, {memory:.0f} GiB, L2 {cache:.0f} MiB",
        "cuda": f"CUDA {torch.version.cuda} of torch, CuPy {cupy.__version__}",
    }
