"""CuPy's devices: one is current in each thread."""

import threading

from . import runtime


class _Entered(threading.local):
    def __init__(self) -> None:
        self.before: list[int] = []


_entered = _Entered()


class Device:
    """A device. It has one processor, so that threads of a large launch do several items."""

    def __init__(self, ordinal: int | None = None) -> None:
        self.id = runtime.getDevice() if ordinal is None else ordinal
        self.attributes = {"MultiProcessorCount": 1}

    def __enter__(self) -> "Device":
        _entered.before.append(runtime.getDevice())
        runtime.setDevice(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        runtime.setDevice(_entered.before.pop())

    def synchronize(self) -> None:
        runtime.unfinished.clear()


def get_cublas_handle() -> int:
    """Return a handle for the device and the thread."""
    from . import cublas

    return cublas.handle(runtime.getDevice())
