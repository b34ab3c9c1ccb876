"""cuBLAS's product, computed by NumPy after its arguments are checked against the manual's rules.

Like CuPy's module, this one is a shared library, `__file__`, through which the functions of cuBLAS are found.
"""

import ctypes
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..compiler import build
from . import runtime
from .stream import get_current_stream

SUCCESS, NOT_INITIALIZED, INVALID_VALUE = 0, 1, 7  # cublasStatus_t
ACCUMULATES = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
CUBLAS_GEMM_DEFAULT = -1

# cudaDataType_t -> dtype
_TYPES = {0: np.dtype("float32"), 1: np.dtype("float64"), 2: np.dtype("float16"), 14: np.dtype(ml_dtypes.bfloat16)}
# What the manual's table of cublasGemmStridedBatchedEx allows: computation -> (scale, {operands: results}).
_ALLOWED: dict[int, tuple[str, dict[int, tuple[int, ...]]]] = {
    CUBLAS_COMPUTE_32F: ("float32", {0: (0,), 2: (2, 0), 14: (14, 0)}),
    CUBLAS_COMPUTE_32F_FAST_TF32: ("float32", {0: (0,)}),
    CUBLAS_COMPUTE_64F: ("float64", {1: (1,)}),
}


def _matrices(
    pointer: int, kind: int, rows: int, columns: int, leading: int, stride: int, count: int, transposed: int = 0
) -> Any:
    """View memory as (count, rows, columns): columns follow one another, or rows of a transposed matrix."""
    if transposed:
        rows, columns = columns, rows
    assert leading >= max(1, rows)
    dtype = _TYPES[kind]
    assert pointer % dtype.itemsize == 0
    length = (count - 1) * stride + (columns - 1) * leading + rows
    memory = np.frombuffer((ctypes.c_char * (length * dtype.itemsize)).from_address(pointer), dtype)
    found = as_strided(memory, (count, rows, columns), [step * dtype.itemsize for step in (stride, 1, leading)])
    return found.swapaxes(1, 2) if transposed else found


class _Handle:
    """What a handle remembers."""

    def __init__(self, device: int) -> None:
        self.device, self.thread = device, threading.get_ident()
        self.stream = self.mode = 0


_handles: dict[int, _Handle] = {}  # by their values


def handle(device: int) -> int:
    """Return the handle of a device and of this thread, which CuPy makes when it is first asked for."""
    for value, found in _handles.items():
        if (found.device, found.thread) == (device, threading.get_ident()):
            return value
    value = (len(_handles) + 1) << 36
    _handles[value] = _Handle(device)
    return value


def setStream(handle: int, stream: int) -> None:
    """Refuse, as CuPy does, what cuBLAS allows."""
    if runtime.streamIsCapturing(stream):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    _check(_set_stream(handle, stream))


def getStream(handle: int) -> int:
    return _handles[handle].stream


def getMathMode(handle: int) -> int:
    return _handles[handle].mode


def setMathMode(handle: int, mode: int) -> None:
    _check(_set_mode(handle, mode))


def gemmStridedBatchedEx(handle: int, *arguments: int) -> None:
    setStream(handle, get_current_stream().ptr)
    _check(_product(handle, *arguments))


def _check(status: int) -> None:
    if status != SUCCESS:
        raise RuntimeError(f"status {status}")


def _set_stream(handle: int, stream: int | None) -> int:
    _handles[handle].stream = stream or 0
    return SUCCESS


def _get_mode(handle: int, mode: int) -> int:
    ctypes.c_int.from_address(mode).value = _handles[handle].mode
    return SUCCESS


def _set_mode(handle: int, mode: int) -> int:
    _handles[handle].mode = mode
    return SUCCESS


def _product(handle: int, *arguments: int) -> int:
    found = _handles.get(handle)
    if found is None or (found.device, found.thread) != (runtime.getDevice(), threading.get_ident()):
        return NOT_INITIALIZED
    try:
        _multiply(found.mode, *arguments)
    except AssertionError:
        traceback.print_exc()
        return INVALID_VALUE
    runtime.begin(found.stream)
    return SUCCESS


def _multiply(
    mode: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    a_type: int,
    lda: int,
    stride_a: int,
    b: int,
    b_type: int,
    ldb: int,
    stride_b: int,
    beta: int,
    c: int,
    c_type: int,
    ldc: int,
    stride_c: int,
    count: int,
    compute: int,
    algorithm: int,
) -> None:
    number, types = _ALLOWED[compute]
    assert algorithm == CUBLAS_GEMM_DEFAULT
    assert c_type in (0, 1) or mode & ACCUMULATES  # lest partial sums be rounded
    assert a_type == b_type
    assert c_type in types[a_type]
    assert min(m, n, k, count) > 0
    assert count == 1 or stride_c >= m  # results lie apart
    scales = [np.frombuffer((ctypes.c_char * 8).from_address(at), number, 1)[0] for at in (alpha, beta)]
    assert scales[0] == 1
    left = _matrices(a, a_type, m, k, lda, stride_a, count, transa).astype(number)
    right = _matrices(b, b_type, k, n, ldb, stride_b, count, transb).astype(number)
    to = _matrices(c, c_type, m, n, ldc, stride_c, count)
    with np.errstate(invalid="ignore"):  # inf * 0 is no news to cuBLAS
        to[...] = left @ right + (scales[1] * to.astype(number) if scales[1] else 0)


def _provide(library: Path) -> list[Any]:
    """Let the library call this module; return what must be kept."""
    address, number, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    operand = (address, number, number, wide)
    parts = [address, *[number] * 5, address, *operand, *operand, address, *operand, *[number] * 3]
    hooks: dict[str, tuple[Callable[..., int], list[Any]]] = {
        "emulated_set_stream": (_set_stream, [address, address]),
        "emulated_get_mode": (_get_mode, [address, address]),
        "emulated_set_mode": (_set_mode, [address, number]),
        "emulated_product": (_product, parts),
    }
    loaded, kept = ctypes.CDLL(str(library)), []
    for name, (function, types) in hooks.items():
        kept.append(ctypes.CFUNCTYPE(number, *types)(function))
        address.in_dll(loaded, name).value = ctypes.cast(kept[-1], address).value
    return kept


_LIBRARY = build(Path(__file__).parents[1].joinpath("cublas.cpp").read_text(encoding="utf-8"), "-O1")
_kept = _provide(_LIBRARY)
__file__ = str(_LIBRARY)
