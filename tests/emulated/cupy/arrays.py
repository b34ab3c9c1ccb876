"""Arrays in the memory of the emulated GPU: NumPy's behind a wall, as CuPy has it.

An array ends where its pages end, and none follow: who reads or writes too far ends the process, as on a GPU. What
has not been written is no number.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .cuda import runtime

PAGE = mmap.PAGESIZE
ALIGNMENT = 16  # CuPy's arrays begin at multiples of 512 bytes; a kernel may ask for no more than this
CUDA = 2  # kDLCUDA
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Pages(mmap.mmap):
    """Pages of a device."""

    device = 0


class Block:
    """Memory between two pages that nobody may touch, full of zeros or of anything but numbers."""

    def __init__(self, size: int, zero: bool = False) -> None:
        room = -(-size // ALIGNMENT) * ALIGNMENT
        pages = -(-room // PAGE) * PAGE
        self._map = Pages(-1, pages + 2 * PAGE)
        self._map.device = runtime.getDevice()
        self.bytes = np.frombuffer(self._map, np.uint8)
        start = self.bytes.ctypes.data
        for wall in (start, start + PAGE + pages):
            assert _LIBC.mprotect(wall, PAGE, 0) == 0
        first = PAGE + pages - room
        if not zero:  # whose pages, untouched, take no memory
            self.bytes[PAGE : PAGE + pages] = 0xFF
        self.bytes = self.bytes[first : first + size]
        self.ptr = start + first


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6, "c": 5}  # DLDataTypeCode
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def wrapped(x: Any) -> Any:
    """Return a NumPy array that lies in a GPU's memory as that, and anything else as it is."""
    if isinstance(x, np.ndarray):
        return ndarray(x)
    return tuple(map(wrapped, x)) if isinstance(x, tuple) else x


def unwrapped(x: Any) -> Any:
    """Return the NumPy array behind."""
    if isinstance(x, ndarray):
        return x.host
    return type(x)(map(unwrapped, x)) if isinstance(x, (tuple, list)) else x


def through(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of NumPy's for arrays of the GPU; new results get memory there."""

    def call(*arguments: Any, **options: Any) -> Any:
        _refuse_hosts((*arguments, *options.values()))
        result = function(*map(unwrapped, arguments), **{name: unwrapped(value) for name, value in options.items()})
        return placed(result)

    return call


def _refuse_hosts(arguments: Iterable[Any]) -> None:
    for x in arguments:
        if isinstance(x, np.ndarray):
            raise TypeError(f"Unsupported type {type(x)}")  # as CuPy says it
        if isinstance(x, tuple | list):
            _refuse_hosts(x)


def placed(result: Any) -> Any:
    """Return a result of NumPy's in the GPU's memory: as it is where it is a view of what lies there."""
    if not isinstance(result, np.ndarray):
        return wrapped(result)
    if isinstance(_owner(result), Pages):
        return ndarray(result)
    copy = allocate(result.shape, result.dtype, "F" if result.flags.fnc else "C")
    copy.host[...] = result
    return copy


def _owner(host: Any) -> Any:
    """Return what the memory of an array belongs to."""
    while isinstance(host, np.ndarray) and host.base is not None:
        host = host.base
    return host.obj if isinstance(host, memoryview) else host


def allocate(shape: Any, dtype: Any, order: Any = "C", zero: bool = False) -> "ndarray":
    """Return a new array, of zeros or of anything but numbers."""
    from .cuda import get_current_stream

    runtime.begin(get_current_stream().ptr)
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return ndarray(np.ndarray(shape, dtype, Block(max(size, 1), zero).bytes, order=order))


class ndarray(NDArrayOperatorsMixin):
    """An array on the GPU; `host` is what NumPy, here, can see of it."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.host, name)
        return through(found) if callable(found) else wrapped(found)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return through(getattr(ufunc, method))(*inputs, **options)

    def __getitem__(self, key: Any) -> Any:
        return placed(self.host[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[unwrapped(key)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def get(self) -> Any:
        return self.host.copy()

    @property
    def device(self) -> Any:
        from .cuda import Device

        return Device(self.data.device_id)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.host.ctypes.data, device_id=getattr(_owner(self.host), "device", 0))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.data.device_id

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        self._order(stream)
        host, count = self.host, self.host.ndim
        kind = (4, 16) if host.dtype == BFLOAT16 else (_CODES[host.dtype.kind], 8 * host.dtype.itemsize)
        numbers = (ctypes.c_int64 * (2 * count))(*host.shape, *(step // host.dtype.itemsize for step in host.strides))
        at = ctypes.addressof(numbers)
        tensor = DLTensor(host.ctypes.data, *self.__dlpack_device__(), count, *kind, 1, at, at + 8 * count)
        self._exported = tensor, numbers  # nothing here takes the memory over
        return _new_capsule(ctypes.addressof(tensor), b"dltensor", None)

    def _order(self, consumer: int | None) -> None:
        """Let the consumer's stream wait for the current one, as CuPy does unless it is told not to."""
        from .cuda import get_current_stream

        streams = {consumer or runtime.streamLegacy, get_current_stream().ptr or runtime.streamLegacy}
        if consumer != -1 and len(streams) > 1 and streams & runtime.capturing:
            raise runtime.CUDARuntimeError("cudaErrorStreamCaptureIsolation", 905)
