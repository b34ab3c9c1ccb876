"""CUDA's runtime."""

import ctypes
import os
import threading

DEVICES = 2  # all in the same memory; the second is for tests that ask for it
streamLegacy = 1

capturing: set[int] = set()  # streams that a CUDA graph is captured from
unfinished: set[int] = set()  # streams with work that nobody has waited for


class CUDARuntimeError(RuntimeError):
    """What a real device might raise."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class _Current(threading.local):
    device = 0


_current = _Current()


def getDevice() -> int:
    return _current.device


def setDevice(ordinal: int) -> None:
    if not 0 <= ordinal < DEVICES:
        raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal", 101)
    _current.device = ordinal


def getDeviceCount() -> int:
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else DEVICES


def getDeviceProperties(ordinal: int) -> dict[str, object]:
    return {"name": b"emulated GPU", "major": 0, "minor": 0, "totalGlobalMem": 0}


def driverGetVersion() -> int:
    return 0


def memsetAsync(pointer: int, value: int, size: int, stream: int) -> None:
    begin(stream)
    ctypes.memset(pointer, value, size)


def begin(stream: int) -> None:
    """Note that a stream has got work."""
    unfinished.add(stream)


def streamSynchronize(stream: int) -> None:
    if stream in capturing:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", 900)
    unfinished.discard(stream)


def streamIsCapturing(stream: int) -> bool:
    return stream in capturing
