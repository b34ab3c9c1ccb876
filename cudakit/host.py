"""Kernels on the host: compiled to shared libraries, loaded, and called on all cores."""

import ctypes
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from cudakit.errors import BackendUnavailable
from cudakit.kernel_cache import build, contains
from cudakit.source import flatten

POOL = "host_pool.cpp"
_JOB = struct.Struct("P3q").pack  # `Job` of `host_pool.cpp`


def missing(texts: Iterable[str]) -> list[str]:
    """Return what has to be built for kernels of these texts, because the disk cache lacks it."""
    return [text for text in dict.fromkeys((*texts, flatten(POOL))) if not contains(text)]


def load(text: str) -> ctypes.CDLL:
    """Return what is compiled from `text`, loaded."""
    with suppress(OSError):
        return ctypes.CDLL(str(build(text)))
    entry = build(text, anew=True)  # the other was made by another system, perhaps, that shares the folder
    try:
        return ctypes.CDLL(str(entry))
    except OSError as error:  # a folder from which the system runs nothing, mounted "noexec"
        remedy = "set CUDAKIT_CACHE_DIR to a folder that programs may be run from"
        raise BackendUnavailable(f"cannot load {entry}: {error}; {remedy}") from None


@cache
def _pool() -> Any:
    """Return `parallel_run` of `host_pool.cpp`: run a kernel's items on several threads."""
    run = load(flatten(POOL)).parallel_run
    run.argtypes = (ctypes.c_char_p,)  # everything in one string: ctypes takes its time with each argument
    run.restype = None
    return run


class HostKernel:
    """A compiled kernel, ready to run on the cores of this machine."""

    def __init__(self, text: str, name: str) -> None:
        self._library = load(text)
        self._entry = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
        self._run = _pool()

    def launch(self, params: bytes, items: int, grain: int, threads: int, _stream: int) -> None:
        """Run items 0 ... `items` - 1; what shares a target stays together in a piece of `grain` items."""
        self._run(_JOB(self._entry, items, grain, threads) + params)
