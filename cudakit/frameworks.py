"""The kinds of arrays that are told by their type: NumPy's, CuPy's, and those of any other producer.

What differentiates has an adapter of its own above this.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from math import prod
from operator import attrgetter
from types import ModuleType
from typing import Any

import numpy as np

from cudakit import dlpack
from cudakit.array import (
    CPU,
    LINE_BYTES,
    Device,
    Framework,
    Maker,
    array_interface,
    dlpack_pointer,
    dlpack_view,
    host_array,
    numpy_dtype,
    numpy_pointer,
    numpy_view,
)
from cudakit.errors import InvalidArgument

LARGE = 1 << 16  # bytes of a result that is worth being aligned


def _no_stream(_: int) -> int:
    return 0


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[..., Any], size: int) -> Any:
    """Return a NumPy array of `size` bytes that begins at a line of the cache; TensorFlow, for one, demands it."""
    memory = make(size + LINE_BYTES, np.uint8)
    return np.ndarray(shape, dtype, memory, -numpy_pointer(memory) % LINE_BYTES)


def _numpy_maker(
    shape: tuple[int, ...], dtype: str, _: Device = CPU, make: str = "empty", aligned_from: int = LARGE
) -> Maker:
    kind, function = numpy_dtype(dtype), getattr(np, make)
    size = prod(shape) * kind.itemsize
    if size < aligned_from:  # NumPy's own takes half a microsecond less
        return partial(function, shape, kind)
    return partial(_aligned, shape, kind, function, size)


@cache
def _numpy_framework() -> Framework:
    return Framework(
        view=numpy_view,
        pointer=numpy_pointer,
        signature=attrgetter("shape", "strides", "dtype"),
        maker=_numpy_maker,
        contiguous=partial(np.array, order="C"),  # also where only the stride of a single row is odd
        stream=_no_stream,
    )


@cache
def _cupy_framework() -> Framework:
    from cudakit import cuda

    return Framework(
        view=cuda.view,
        pointer=cuda.pointer,
        signature=cuda.signature,
        maker=lambda *what: partial(cuda.new_array, *what),
        contiguous=cuda.contiguous,
        stream=cuda.stream,
    )


@cache
def _cuda_interface_framework() -> Framework:
    """Return the framework of Numba's arrays and others that speak no DLPack; their results are CuPy's arrays."""
    from cudakit import cuda

    own = _cupy_framework()
    return replace(
        own,
        view=lambda x: own.view(cuda.adopted(x)),
        pointer=lambda x: own.pointer(cuda.adopted(x)),
        signature=lambda x: own.signature(cuda.adopted(x)),
        contiguous=lambda x: own.contiguous(cuda.adopted(x)),
    )


def _finish(ordinal: int, stream: int) -> None:
    from cudakit import cuda

    cuda.synchronize(ordinal, stream)


def wrapping_framework(wrap: Callable[[Any, str], Any], stream: Callable[[int], int] | None = None) -> Framework:
    """Make the framework of arrays that cannot be allocated and written in place by their own library.

    The buffer is NumPy's or CuPy's; `wrap(buffer, dtype)` hands it over through DLPack. NumPy exports no bfloat16, so
    there the buffer is int16 and `wrap` reinterprets it. `stream` returns the handle of the library's current stream on
    a device. Where nobody can tell, launches go to CUDA's default stream, which DLPack makes wait for the arguments,
    and are waited for: the library may read the results on any other.
    """
    launches_on = stream or _no_stream

    def allocate(shape: tuple[int, ...], dtype: str, device: Device, make: str) -> Any:
        storage = "int16" if dtype == "bfloat16" else dtype
        if device == CPU:
            return wrap(_numpy_maker(shape, storage, device, make, 0)(), dtype)
        from cudakit import cuda

        with cuda.current(device, launches_on(device[1])):
            return wrap(cuda.new_array(shape, storage, device, make), dtype)

    def contiguous(x: Any) -> Any:
        view = dlpack_view(x)
        dtype = view.spec.dtype
        if view.device == CPU:
            shown = host_array(view)
            buffer = _numpy_maker(shown.shape, shown.dtype.name, aligned_from=0)()
            buffer[...] = shown
            return wrap(buffer, dtype)
        from cudakit import cuda

        with cuda.current(view.device, launches_on(view.device[1])):
            return wrap(cuda.copied(array_interface(view), view.device), dtype)

    return Framework(
        view=dlpack_view,
        pointer=dlpack_pointer,
        signature=lambda x: dlpack_view(x)[1:],
        maker=lambda *what: partial(allocate, *what),
        contiguous=contiguous,
        stream=launches_on,
        finish=None if stream else _finish,
    )


def _library_of(x: Any) -> Any:
    """Return the module that serves an array: its array API's, or the package of its type."""
    namespace = x.__array_namespace__() if hasattr(type(x), "__array_namespace__") else None
    return namespace if isinstance(namespace, ModuleType) else sys.modules.get(_package(type(x)))


def _package(kind: type) -> str:
    """Return the name of the package of a type; those that ctypes makes have none."""
    return (kind.__module__ or "").partition(".")[0]


@cache
def _producer_framework(library: ModuleType | None) -> Framework:
    """Return the framework of any other producer: its own `from_dlpack`, else NumPy's or CuPy's arrays come back."""
    from_dlpack = getattr(library, "from_dlpack", None)

    def wrap(buffer: Any, dtype: str) -> Any:
        if from_dlpack is not None:
            return from_dlpack(dlpack.Bfloat16(buffer) if dtype == "bfloat16" else buffer)
        return buffer.view(numpy_dtype(dtype)) if dtype == "bfloat16" else buffer

    found = wrapping_framework(wrap)
    if from_dlpack is not None:
        return found
    # What comes back is NumPy's, and is read as such: NumPy lends no bfloat16.
    return replace(
        found,
        view=lambda x: numpy_view(x) if isinstance(x, np.ndarray) else found.view(x),
        pointer=lambda x: numpy_pointer(x) if isinstance(x, np.ndarray) else found.pointer(x),
        signature=lambda x: numpy_view(x)[1:] if isinstance(x, np.ndarray) else found.signature(x),
    )


# How to recognise the arrays of a library without importing it: (module, class) -> its framework.
_LIBRARIES: tuple[tuple[str, str, Callable[[], Framework]], ...] = (
    ("numpy", "ndarray", _numpy_framework),
    ("cupy", "ndarray", _cupy_framework),
)
# The same for those that an adapter serves, with its name.
_ADAPTED = (
    ("torch", "Tensor", "torch"),
    ("torch.fx", "Proxy", "torch"),
    ("jax", "Array", "jax"),
    ("tensorflow", "Tensor", "tensorflow"),
    ("tensorflow", "Variable", "tensorflow"),
    ("paddle", "Tensor", "paddle"),
)


def framework_of(x: object) -> Framework | str:
    """Return the framework of an array, or the name of the adapter that serves it, such as ``"torch"``.

    It depends on nothing but the type.
    """
    kind = type(x)
    if isinstance(x, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())):
        raise InvalidArgument("{}", "be an array without a mask of its own", kind_of(x), TypeError)
    for module, name, adapter in _ADAPTED:
        if module in sys.modules and isinstance(x, getattr(sys.modules[module], name, ())):
            return adapter
    for module, name, make in _LIBRARIES:
        if module in sys.modules and isinstance(x, getattr(sys.modules[module], name, ())):
            return make()
    if hasattr(kind, "__dlpack__"):
        return _producer_framework(_library_of(x))
    if hasattr(kind, "__cuda_array_interface__"):
        return _cuda_interface_framework()
    keras: Any = sys.modules.get("keras")
    if isinstance(x, getattr(keras, "Variable", ())) and keras.config.backend() == "tensorflow":
        return "tensorflow"  # which makes tensors of them itself
    rule = "be an array that speaks DLPack"
    if _package(kind) == "paddle":
        rule = "be an eager tensor, as Paddle's static graphs are not served"
    raise InvalidArgument("{}", rule, kind_of(x), TypeError)


def kind_of(x: object) -> str:
    """Return a type and whose it is, such as ``torch.Tensor``."""
    library, name = _package(type(x)), type(x).__qualname__
    return name if library in ("", "builtins") else f"{library}.{name}"
