"""The emulated devices, their streams and their memory."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..arrays import Block
from . import compiler, cublas, device, runtime
from .device import Device
from .stream import Stream, get_current_stream

__all__ = ["Device", "Stream", "alloc", "compiler", "cublas", "device", "get_current_stream", "is_available", "runtime"]


def _from_pool(size: int) -> Any:
    stream = get_current_stream()
    assert not runtime.streamIsCapturing(stream.ptr)  # when the graph is launched, it would be somebody else's
    made = Block(size)
    made.stream_ref = weakref.ref(stream)  # as what comes from CuPy's `MemoryAsyncPool` has one
    return made


def malloc_async(size: int) -> Any:
    """Make memory that belongs to a graph where one is captured."""
    return Block(size)


class _Allocators(threading.local):
    def __init__(self) -> None:
        self.current: Callable[[int], Any] = _from_pool


_allocators = _Allocators()


def alloc(size: int) -> Any:
    return _allocators.current(size)


@contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    before = _allocators.current
    _allocators.current = allocator
    try:
        yield
    finally:
        _allocators.current = before


def set_allocator(allocator: Callable[[int], Any] | None = None) -> None:
    _allocators.current = allocator or Block


def is_available() -> bool:
    return True
