"""The emulated devices, their streams and their memory."""

import weakref
from typing import Any

from ..arrays import Block
from . import compiler, cublas, device, runtime
from .device import Device
from .stream import Stream, get_current_stream

__all__ = ["Device", "Stream", "alloc", "compiler", "cublas", "device", "get_current_stream", "is_available", "runtime"]


def alloc(size: int) -> Any:
    made = Block(size)
    made.stream_ref = weakref.ref(get_current_stream())  # as what comes from CuPy's `MemoryAsyncPool` has one
    return made


def is_available() -> bool:
    return True
