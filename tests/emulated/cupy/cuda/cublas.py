"""cuBLAS's product, computed by NumPy after its arguments are checked against the manual's rules."""

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

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


def gemmStridedBatchedEx(
    handle: int,
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
    assert (handle, algorithm) == (1, CUBLAS_GEMM_DEFAULT)
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
