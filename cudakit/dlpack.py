"""Read what a DLPack producer exports: the C structs behind the capsule, by their published layout.

Written out here because the libraries that do it import PyTorch wherever it is installed, which costs seconds and is
nobody's wish who works with NumPy or JAX.
"""

import ctypes
from typing import Any

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    """``DLTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _VersionedTensor(ctypes.Structure):
    """``DLManagedTensorVersioned``, which is the one that may be read-only."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("manager_context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def read(x: Any) -> tuple[int, tuple[int, ...], tuple[int, ...] | None, str, int, int]:
    """Read a producer's memory.

    Returns
    -------
    tuple
        (address, shape, strides in elements or None for C order, dtype name, device type, device ordinal).
    """
    try:
        capsule = x.__dlpack__()
        tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    except BufferError:  # read-only: only the newer protocol can say so
        capsule = x.__dlpack__(max_version=(1, 0))
        tensor = _VersionedTensor.from_address(_capsule_pointer(capsule, b"dltensor_versioned")).tensor
    count = tensor.ndim
    shape = tuple(tensor.shape[:count])
    strides = tuple(tensor.strides[:count]) if tensor.strides else None
    name = _KINDS.get(tensor.code, f"type{tensor.code}_") + ("" if tensor.code == 6 else str(tensor.bits))
    return (tensor.data or 0) + tensor.byte_offset, shape, strides, name, tensor.device_type, tensor.device_id
