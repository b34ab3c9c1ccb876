"""The emulated device, its streams, which are all one, and its memory."""

from typing import Any

from ..arrays import Block
from . import compiler, cublas, device, runtime

__all__ = ["Device", "Stream", "alloc", "compiler", "cublas", "device", "get_current_stream", "is_available", "runtime"]


class Scope:
    """What may be entered and waited for, and need not be: nothing here returns before it is done."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Device(Scope):
    """The only device. It has one processor, so that threads of a large launch do several items."""

    def __init__(self, ordinal: int = 0) -> None:
        assert ordinal == 0
        self.attributes = {"MultiProcessorCount": 1}


class Stream(Scope):
    """Anybody's stream."""

    def __init__(self, non_blocking: bool = False, ptr: int = 0) -> None:
        self.ptr = ptr

    @classmethod
    def from_external(cls, stream: Any) -> "Stream":
        version, handle = stream.__cuda_stream__()
        assert version == 0
        return cls(ptr=handle)


def get_current_stream() -> Stream:
    return Stream()


def alloc(size: int) -> Block:
    return Block(size)


def is_available() -> bool:
    return True
