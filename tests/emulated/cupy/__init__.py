"""As much of CuPy as cudakit and its tests use, on a GPU that is emulated: what runs there runs here, slowly.

Kernels are the texts that NVRTC would see (`compiler.py`, `processor.h`), memory is walled in (`arrays.py`), streams
and devices are current as they are in CuPy (`cuda/stream.py`), and what cuBLAS is asked for is checked and computed by
NumPy (`cuda/cublas.py`).
"""

from typing import Any

import numpy as np

from . import cuda
from .arrays import allocate, ndarray, through, unwrapped
from .compiler import RawModule, run_forwards

EMULATED = True
__version__ = "emulated"
__all__ = ["EMULATED", "RawModule", "array", "asarray", "cuda", "empty", "ndarray", "run_forwards", "zeros"]


def empty(shape: Any, dtype: Any = float) -> ndarray:
    return allocate(shape, dtype)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return allocate(shape, dtype, zero=True)


def array(values: Any, dtype: Any = None, order: str = "K") -> ndarray:
    source = np.array(unwrapped(_read(values)), dtype, order=order)
    made = allocate(source.shape, source.dtype, "F" if source.flags.fnc else "C")
    made.host[...] = source
    return made


def asarray(values: Any, dtype: Any = None) -> ndarray:
    if isinstance(values, ndarray) and dtype in (None, values.dtype):
        return values
    found = _read(values)
    return found if isinstance(found, ndarray) else array(found, dtype)


def _read(values: Any) -> Any:
    """Return what a CUDA array interface describes as an array that shares its memory, and anything else as it is."""
    interface = getattr(values, "__cuda_array_interface__", None)
    if interface is None or isinstance(values, ndarray):
        return values
    holder = type("Holder", (), {"__array_interface__": interface, "owner": values})()
    return ndarray(np.asarray(holder))


def ascontiguousarray(x: ndarray, dtype: Any = None) -> ndarray:
    return x if x.flags.c_contiguous and dtype in (None, x.dtype) else array(x, dtype, order="C")


def __getattr__(name: str) -> Any:
    found = getattr(np, name)
    return through(found) if callable(found) and not isinstance(found, type) else found
