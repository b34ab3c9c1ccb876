"""CUDA through CuPy: compile, launch, allocate. The only module by which operators reach it."""

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from cudakit.array import Device, Memory, View, numpy_dtype, strided_spec
from cudakit.cublas import Gemm, Library
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.product import Product
from cudakit.source import CUDA_OPTIONS

try:
    import cupy
except ImportError as error:
    raise BackendUnavailable(
        "CUDA arrays need CuPy; install it with: pip install 'cudakit[cuda12]' (or 'cudakit[cuda13]')"
    ) from error

INSTALL_PARTS = "install CuPy with its parts of the CUDA toolkit: pip install 'cudakit[cuda12]' (or 'cudakit[cuda13]')"
if not hasattr(cupy.cuda.Stream, "from_external"):
    raise BackendUnavailable(f"CuPy {cupy.__version__} is older than 14; {INSTALL_PARTS}")

THREADS = 256
BLOCKS_PER_PROCESSOR = 32
DEFAULT_STREAMS = (0, 1)  # handles of the legacy one, from which no graph is captured
_HERE = nullcontext()


def _on(ordinal: int) -> AbstractContextManager[Any]:
    """Return a context in which a device is current; one that is needs nothing put back."""
    return _HERE if cupy.cuda.runtime.getDevice() == ordinal else cupy.cuda.Device(ordinal)


class _Stream:
    """Somebody's stream, as CuPy's launch and CUDA's stream protocol read one."""

    def __init__(self, handle: int) -> None:
        self.ptr = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return (version of the protocol, handle)."""
        return (0, self.ptr)


class CudaKernel:
    """A compiled kernel, ready to run on one device."""

    def __init__(self, text: str, name: str, lanes: int, ordinal: int) -> None:
        self._lanes, self._ordinal = lanes, ordinal
        with _on(ordinal):
            self._function = _compile(text, name)
        self._blocks = cupy.cuda.Device(ordinal).attributes["MultiProcessorCount"] * BLOCKS_PER_PROCESSOR

    def launch(self, params: bytes, items: int, _grain: int, _threads: int, stream: int) -> None:
        """Run items 0 ... `items` - 1 on the given stream."""
        blocks = min(-(-items * self._lanes // THREADS), self._blocks)
        by_value = np.frombuffer(params, np.dtype((np.void, len(params))))
        with _on(self._ordinal):
            self._function((blocks,), (THREADS,), (by_value,), stream=_Stream(stream))


def _compile(text: str, name: str) -> Any:
    """Return a kernel for the current device."""
    try:
        return cupy.RawModule(code=text, options=CUDA_OPTIONS).get_function(name)
    except cupy.cuda.compiler.CompileException as error:
        raise CompileError(f"NVRTC refused {name}", text, str(error)) from error
    except RuntimeError as error:
        if hasattr(error, "status"):  # CUDA's own; the rest say what CuPy does not find
            raise
        raise BackendUnavailable(f"NVRTC or the headers of CUDA are missing; {INSTALL_PARTS}\n{error}") from error


def view(x: Any) -> View:
    """View a CuPy array. DLPack would let CUDA's default stream wait for the current one, which a capture forbids."""
    memory = x.data
    return View(memory.ptr, strided_spec(x, memory.ptr % 16 == 0), ("cuda", memory.device_id))


def pointer(x: Any) -> int:
    """Return the address of a CuPy array."""
    address: int = x.data.ptr
    return address


def signature(x: Any) -> Any:
    """Return a quick key of what a CuPy array looks like."""
    memory = x.data
    return x.shape, x.strides, x.dtype, memory.device_id, memory.ptr % 16


def new_array(shape: tuple[int, ...], dtype: str, device: Device, make: str) -> Any:
    """Return a CuPy array that is "empty", or of "zeros"."""
    with _on(device[1]):
        return getattr(cupy, make)(shape, numpy_dtype(dtype))


def contiguous(x: Any) -> Any:
    """Return a CuPy array in C order."""
    with _on(x.data.device_id), _graphs_own(stream(x.data.device_id)):
        return cupy.array(x, order="C")  # also where only the stride of a single row is odd


def adopted(x: Any) -> Any:
    """Return the memory behind a ``__cuda_array_interface__`` as a CuPy array, after what its stream has to do."""
    return cupy.asarray(x)


def copied(interface: dict[str, Any], device: Device) -> Any:
    """Return what a ``__cuda_array_interface__`` describes as a CuPy array in C order."""
    with _on(device[1]):
        return cupy.array(SimpleNamespace(__cuda_array_interface__=interface), order="C")


def stream(ordinal: int) -> int:
    """Return the handle of CuPy's current stream on a device."""
    with _on(ordinal):
        handle: int = cupy.cuda.get_current_stream().ptr
        return handle


@cache
def _external(_ordinal: int, handle: int) -> Any:
    """Return somebody's stream as CuPy's, which belongs to the current device.

    It is kept: CuPy's `MemoryAsyncPool` frees on it, and does not keep it.
    """
    return cupy.cuda.Stream.from_external(_Stream(handle))


@contextmanager
def current(device: Device, stream: int) -> Iterator[None]:
    """Make a device and a stream CuPy's current ones for a while.

    The stream that was current comes back by `use`: to leave ``with stream:`` brings back what was current by ``with``,
    and forgets what somebody made current by `use`.
    """
    with _on(device[1]):
        before = cupy.cuda.get_current_stream()
        if before.ptr == stream:
            yield
            return
        _external(device[1], stream).use()
        try:
            yield
        finally:
            before.use()


def _graphs_own(stream: int) -> AbstractContextManager[Any]:
    """Return a context in which temporary memory belongs to the graph that is being captured, if one is.

    What goes back to CuPy's pool may be somebody else's when the graph is launched.
    """
    if stream in DEFAULT_STREAMS or not cupy.cuda.runtime.streamIsCapturing(stream):
        return _HERE
    return cupy.cuda.using_allocator(cupy.cuda.malloc_async)


def allocate(size: int, device: Device, stream: int) -> Memory:
    """Return temporary device memory from CuPy's pool, ordered on `stream`."""
    with current(device, stream), _graphs_own(stream):
        memory = cupy.cuda.alloc(size)
    return Memory(memory.ptr, memory)


def synchronize(ordinal: int, stream: int) -> None:
    """Wait for what a device has to do on `stream`."""
    with _on(ordinal):
        cupy.cuda.runtime.streamSynchronize(stream)


def zero_memory(pointer: int, size: int, device: Device, stream: int) -> None:
    """Fill device memory with zeros, on `stream`."""
    with _on(device[1]):
        cupy.cuda.runtime.memsetAsync(pointer, 0, size, stream)


def device_count() -> int:
    """Return the number of CUDA devices."""
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0
    return count


@cache
def _cublas() -> Library:
    try:
        from cupy.cuda import cublas

        return Library(cublas.__file__)
    except (ImportError, OSError, AttributeError) as error:  # the last of a CuPy that is not linked to it
        raise BackendUnavailable(f"deformable convolutions on a GPU need cuBLAS; {INSTALL_PARTS}") from error


class CudaProduct:
    """A matrix product, ready to run on one device."""

    def __init__(self, product: Product, ordinal: int) -> None:
        self._gemm, self._ordinal = Gemm(_cublas(), product), ordinal
        self._unpack = struct.Struct("3Q").unpack

    def launch(self, pointers: bytes, stream: int) -> None:
        """Multiply with these pointers, packed, on the given stream."""
        with _on(self._ordinal):
            # Asked for every time: CuPy has a handle for each thread.
            self._gemm.launch(cupy.cuda.device.get_cublas_handle(), stream, self._unpack(pointers))
