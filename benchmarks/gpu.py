"""Rows on a GPU: arrays are PyTorch's tensors there, and calls are timed by CUDA events."""

from collections.abc import Callable
from math import ceil
from typing import Any

from .cases import Arrays, Row
from .measure import BURST_SECONDS, Device, Result, Sample
from .peers import load

CACHES = 3  # calls take turns on copies of the arrays that fill the L2 cache so many times
MOST_COPIES = 64
LONGEST_BURST = 200
COPY_BYTES = 10**9
COPIES = 20
NOTES = (
    "Times are between CUDA events around calls in a row, on copies of the arrays that together exceed the L2 cache. "
    "float32 is computed without TF32.",
    "Errors in half precision are against the same arrays in float32. Peers work out coordinates in the arrays' dtype.",
)


def available() -> bool:
    """Whether PyTorch and CuPy are there and see a GPU."""
    torch, cupy = load("torch"), load("cupy")
    return torch is not None and cupy is not None and torch.cuda.is_available() and cupy.cuda.is_available()


def copies_needed(size: int, cache: int) -> int:
    """Return how many copies of a row's arrays calls take in turn, so that none of them is in the cache any more."""
    return min(max(ceil(CACHES * cache / size), 1), MOST_COPIES)


def tensors(row: Row, where: str, cache: int) -> list[Arrays]:
    """Return copies of a row's arrays as tensors of its dtype."""
    torch = load("torch")
    torch.cuda.empty_cache()  # of the last row's memory, which CuPy may want
    given = {name: torch.from_numpy(array).to(where, getattr(torch, row.dtype)) for name, array in row.make().items()}
    count = copies_needed(sum(tensor.nbytes for tensor in given.values()), cache)
    return [given, *({name: tensor.clone() for name, tensor in given.items()} for _ in range(count - 1))]


def exact(arrays: Arrays) -> Arrays:
    """Return the tensors in float32."""
    return {name: tensor.to(load("torch").float32) for name, tensor in arrays.items()}


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
    return Device(lambda row: tensors(row, where, cache), exact, seconds, burst)


def copy_bandwidth(where: str = "cuda") -> float:
    """Return GB/s of a copy, read and written."""
    torch = load("torch")
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    target.copy_(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source), COPIES) / 1e9


def describe() -> Result:
    """Return what times on the GPU depend on."""
    torch, cupy = load("torch"), load("cupy")
    found = torch.cuda.get_device_properties(0)
    memory, cache = found.total_memory / 2**30, found.L2_cache_size / 2**20
    return {
        "gpu": f"{found.name}, sm_{found.major}{found.minor}, {memory:.0f} GiB, L2 {cache:.0f} MiB",
        "cuda": f"CUDA {torch.version.cuda} of torch, CuPy {cupy.__version__}",
    }
