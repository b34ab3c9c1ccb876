"""Read what a DLPack producer exports: the C structs behind the capsule, by their published layout.

Written out here because the libraries that do it import PyTorch wherever it is installed, which costs seconds and is
nobody's wish who works with NumPy or JAX.
"""

import ctypes
import struct
from typing import Any

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


# ``DLTensor``: data, device type, device ordinal, number of dimensions, dtype (code, bits, lanes), addresses of shape
# and strides, byte offset. In ``DLManagedTensorVersioned`` it follows version, context, deleter and flags.
_TENSOR = struct.Struct("@PiiiBBHPPQ")
_VERSIONED = struct.calcsize("@IIPPQ")
_CODE, _BFLOAT = struct.calcsize("@Piii"), 4

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_bytes_at = ctypes.string_at


class _Held(int):
    """An address that keeps the capsule which it comes from: the memory may be the capsule's own."""

    capsule: Any


def _held(capsule: Any, address: int) -> _Held:
    held = _Held(address)
    held.capsule = capsule
    return held


def _header(x: Any) -> tuple[Any, tuple[int, ...]]:
    """Return a producer's capsule, which must be kept while it is read, and the fields of its ``DLTensor``."""
    try:
        capsule = x.__dlpack__()
    except BufferError as error:  # read-only: only the newer protocol can say so
        try:
            capsule = x.__dlpack__(max_version=(1, 0))
        except TypeError:  # the producer does not know it
            raise error from None
    return capsule, _TENSOR.unpack(_bytes_at(_tensor_address(capsule), _TENSOR.size))


def _tensor_address(capsule: Any) -> int:
    """Return where a capsule has its ``DLTensor``."""
    if _capsule_is_valid(capsule, b"dltensor"):
        return int(_capsule_pointer(capsule, b"dltensor"))
    return int(_capsule_pointer(capsule, b"dltensor_versioned")) + _VERSIONED


class Bfloat16:
    """A buffer of 16-bit integers that says it is bfloat16, which NumPy does not export."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def __dlpack__(self, **options: Any) -> Any:
        """Return the buffer's capsule with another dtype."""
        capsule = self._buffer.__dlpack__(**options)
        ctypes.memset(_tensor_address(capsule) + _CODE, _BFLOAT, 1)
        return capsule

    def __dlpack_device__(self) -> Any:
        """Return where the buffer is."""
        return self._buffer.__dlpack_device__()


def place(x: Any) -> int:
    """Return the address of a producer's memory, which exists as long as the address does."""
    capsule, (data, *_, offset) = _header(x)
    return _held(capsule, data + offset)


def read(x: Any) -> tuple[int, tuple[int, ...], tuple[int, ...] | None, str, int, int]:
    """Read a producer's memory.

    Returns
    -------
    tuple
        (address, shape, strides in elements or None for C order, dtype name, device type, device ordinal). The memory
        exists as long as the address does.
    """
    capsule, (data, kind, index, count, code, bits, lanes, shape, strides, offset) = _header(x)
    numbers = struct.Struct(f"{count}q")
    sizes = numbers.unpack(_bytes_at(shape, numbers.size))
    steps = numbers.unpack(_bytes_at(strides, numbers.size)) if strides else None
    name = _KINDS.get(code, f"type{code}_") + ("" if code == 6 else str(bits)) + (f"x{lanes}" if lanes != 1 else "")
    return _held(capsule, data + offset), sizes, steps, name, kind, index
