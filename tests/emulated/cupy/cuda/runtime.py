"""CUDA's runtime."""

import ctypes
import os


class CUDARuntimeError(RuntimeError):
    """What a real device might raise."""


def getDeviceCount() -> int:
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else 1


def getDeviceProperties(ordinal: int) -> dict[str, object]:
    return {"name": b"emulated GPU", "major": 0, "minor": 0, "totalGlobalMem": 0}


def driverGetVersion() -> int:
    return 0


def memsetAsync(pointer: int, value: int, size: int, stream: int) -> None:
    ctypes.memset(pointer, value, size)
