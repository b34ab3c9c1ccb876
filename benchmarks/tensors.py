"""Rows on PyTorch's tensors: on a GPU, and on a CPU those in half precision, of which NumPy lacks one."""

from math import ceil

from .cases import Arrays, Row
from .measure import CPU, Device
from .peers import load

CACHES = 3  # calls take turns on copies of the arrays that fill the L2 cache so many times
MOST_COPIES = 64


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


def on_cpu() -> Device:
    """Return how rows on tensors are measured on a CPU."""
    return CPU._replace(copies=lambda row: tensors(row, "cpu", 0), exact=exact)
