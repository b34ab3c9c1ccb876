"""Any array as a `View` of its memory: NumPy's and CuPy's are read directly, the others through DLPack.

A `Framework` says how a kind of array is viewed, allocated, made contiguous and put on a stream.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cudakit import dlpack
from cudakit.errors import InvalidArgument

Device = tuple[str, int]  # ("cpu", 0) or ("cuda", ordinal)
CPU: Device = ("cpu", 0)
LINE_BYTES = 64  # of a cache: memory that other libraries take over begins at one, and vectors lie in one


class Spec(NamedTuple):
    """Everything about an array but where it lies: shape and strides in elements, dtype as its name.

    `aligned` says whether a GPU may read it 16 bytes at a time. Elements that lie no whole number of them apart, as a
    field of packed records may, have no strides: they are copied before all else.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    aligned: bool = True


class View(NamedTuple):
    """Where an array lies and what it looks like."""

    pointer: int
    spec: Spec
    device: Device


class Memory(NamedTuple):
    """Temporary memory: its address, and what keeps it until the kernels that use it have been launched."""

    pointer: int
    owner: Any


Temporary = Callable[[int, Device, int], Memory]  # (bytes, device, stream)
Maker = Callable[[], Any]  # of new arrays


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_contiguous(spec: Spec) -> bool:
    """Whether the elements follow one another in C order; strides of sizes 0 and 1 do not count."""
    if 0 in spec.shape:
        return True
    pairs = zip(spec.strides, contiguous_strides(spec.shape), spec.shape, strict=True)
    return all(stride == expected for stride, expected, size in pairs if size != 1)


@dataclass(frozen=True, eq=False)
class Framework:
    """A kind of array.

    `view` reads an array, `pointer` only its address; `signature` is a quick key: arrays with equal ones have equal
    specs and devices. `maker` takes (shape, dtype name, device, "empty" or "zeros") and returns what makes such arrays;
    `contiguous` returns a copy in C order; `stream` returns the handle of the stream to launch on for a device ordinal.
    `temporary` makes workspaces, where the framework has memory for them that its CUDA graphs keep. `finish` waits for
    what was launched, given the ordinal and the stream, where that is not the stream that the framework works on.
    `deterministic` says whether the framework's user wants results that are the same in every run, and `threads` on how
    many CPU threads the framework works.
    """

    view: Callable[[Any], View]
    pointer: Callable[[Any], int]
    signature: Callable[[Any], Any]
    maker: Callable[[tuple[int, ...], str, Device, str], Maker]
    contiguous: Callable[[Any], Any]
    stream: Callable[[int], int]
    temporary: Temporary | None = None
    finish: Callable[[int, int], None] | None = None
    deterministic: Callable[[], bool] | None = None
    threads: Callable[[], int] | None = None


_NUMPY_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64")}


def itemsize(dtype: str) -> int:
    """Return the size of an element in bytes."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name; bfloat16 is ml_dtypes', which the caller must have to hold such an array."""
    if name == "bfloat16":
        import ml_dtypes

        extra: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return extra
    plain: np.dtype[Any] = np.dtype(name)
    return plain


def strided_spec(x: Any, aligned: bool = True) -> Spec:
    """Return what an array of NumPy's or CuPy's looks like: any strides, and ml_dtypes' bfloat16 included."""
    dtype = x.dtype
    name = _NUMPY_NAMES.get(dtype) or str(dtype)
    item = dtype.itemsize or 1  # of a dtype that will be refused
    if not dtype.isnative:
        raise InvalidArgument("{}", "be in native byte order", dtype.str, TypeError)
    whole = not any(stride % item for stride in x.strides)
    return Spec(x.shape, tuple([stride // item for stride in x.strides]) if whole else (), name, aligned)


def numpy_view(x: Any) -> View:
    """View a NumPy array, read-only ones included."""
    return View(numpy_pointer(x), strided_spec(x), CPU)


def _interface_pointer(x: Any) -> int:
    """Return the address of a NumPy array, the slow way."""
    pointer: int = x.__array_interface__["data"][0]
    return pointer


# In CPython an array is its object header and then the address of its data: NumPy's own macro `PyArray_DATA` reads it
# there in every compiled extension, so the place is as stable as NumPy's ABI.
_HEADER = object.__basicsize__
_address_at = ctypes.c_void_p.from_address


def _field_pointer(x: Any) -> int:
    """Return the address of a NumPy array in a fraction of the time of other ways, read-only arrays included."""
    return _address_at(id(x) + _HEADER).value or 0


def _field_holds() -> bool:
    """Whether the field is where it should be, in arrays that begin at their memory and in those that do not."""
    probes = [np.ones(3), np.ones((4, 4))[1:, ::-1], np.broadcast_to(np.ones(1), (2, 2)), np.empty(0)]
    return sys.implementation.name == "cpython" and all(_field_pointer(x) == _interface_pointer(x) for x in probes)


numpy_pointer = _field_pointer if _field_holds() else _interface_pointer


def dlpack_pointer(x: Any) -> int:
    """Return the address of a DLPack producer's memory."""
    return dlpack.place(x)


def dlpack_view(x: Any) -> View:
    """View any DLPack producer."""
    pointer, shape, strides, dtype, kind, index = dlpack.read(x)
    if kind not in (dlpack.CPU, dlpack.CUDA, dlpack.CUDA_HOST, dlpack.CUDA_MANAGED):
        raise InvalidArgument("{}", "be on a CPU or a CUDA device", f"DLPack device type {kind}", TypeError)
    device = ("cuda", index) if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED) else CPU
    aligned = device == CPU or pointer % 16 == 0
    return View(pointer, Spec(shape, contiguous_strides(shape) if strides is None else strides, dtype, aligned), device)


def array_interface(view: View) -> dict[str, Any]:
    """Return the array interface of a view, with int16 for bfloat16, which NumPy and CuPy lack."""
    shape, strides, dtype, _ = view.spec
    storage = np.dtype("int16" if dtype == "bfloat16" else dtype)
    return {
        "data": (view.pointer, True),
        "shape": shape,
        "strides": tuple(stride * storage.itemsize for stride in strides),
        "typestr": storage.str,
        "version": 3,
    }


def host_array(view: View) -> Any:
    """Return what a view of the process's memory shows, as a NumPy array that does not keep it; bfloat16 as int16."""
    return np.asarray(SimpleNamespace(__array_interface__=array_interface(view)))
