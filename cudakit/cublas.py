"""cuBLAS's matrix products, through its C interface: on any stream, one that a CUDA graph is captured from included.

CuPy's own functions refuse such a stream, which cuBLAS does not: what its products need then becomes part of the graph.
"""

import ctypes
from typing import Any

import numpy as np

from cudakit.product import Product, column_major

# cudaDataType_t
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
# cublasComputeType_t: the type that products are summed in.
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_GEMM_DEFAULT = -1
# A flag of cublasMath_t, which only results below the type of the sums need: partial sums are kept in that type, too.
_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
_ONE, _ZERO = ({name: np.array(value, name) for name in ("float32", "float64")} for value in (1, 0))

_ADDRESS, _INT, _WIDE = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_OPERAND = (_ADDRESS, _INT, _INT, _WIDE)  # address, type, leading dimension, stride of the batch
_GEMM = (
    *(_ADDRESS, *[_INT] * 5),  # handle, two transpositions, three sizes
    *(_ADDRESS, *_OPERAND, *_OPERAND, _ADDRESS, *_OPERAND),  # alpha, a, b, beta, c
    *(_INT, _INT, _INT),  # batch, type of the sums, algorithm
)


class Library:
    """The functions of cuBLAS that are called here.

    Parameters
    ----------
    file : str
        A shared library that is linked to cuBLAS: its functions are those of the library that made CuPy's handles,
        even where other versions of it are loaded as well.
    """

    def __init__(self, file: str) -> None:
        self._library = ctypes.CDLL(file)
        self.set_stream = self._function("cublasSetStream_v2", _ADDRESS, _ADDRESS)
        self.get_mode = self._function("cublasGetMathMode", _ADDRESS, _ADDRESS)
        self.set_mode = self._function("cublasSetMathMode", _ADDRESS, _INT)
        self.multiply = self._function("cublasGemmStridedBatchedEx", *_GEMM)
        self._name = self._library.cublasGetStatusName
        self._name.restype, self._name.argtypes = ctypes.c_char_p, (_INT,)

    def _function(self, name: str, *types: Any) -> Any:
        """Return a function that raises where its status is not success."""
        function = getattr(self._library, name)
        function.restype, function.argtypes, function.errcheck = _INT, types, self._check
        return function

    def _check(self, status: int, function: Any, _arguments: Any) -> None:
        if status != 0:
            raise RuntimeError(f"{function.__name__} failed: {self._name(status).decode()}")


class Gemm:
    """A product with everything but its pointers, its handle and its stream."""

    def __init__(self, library: Library, product: Product) -> None:
        first, second, columns = column_major(product)
        m, n, k = product.sizes
        number = "float64" if product.dtype == "float64" else "float32"
        compute = _COMPUTE_64F if number == "float64" else _COMPUTE_32F
        if product.tf32 and product.dtype == "float32":
            compute = _COMPUTE_32F_FAST_TF32
        kind, beta = _DATA_TYPES[product.dtype], _ONE if product.add else _ZERO
        sizes = (n, m, k) if columns.swapped else (m, n, k)
        self._library, self._swapped = library, columns.swapped
        self._rounds = product.out not in _ONE
        self._before = (first.transposed, second.transposed, *sizes, _ONE[number].ctypes.data)
        self._first, self._second = (kind, first.leading, first.batch), (kind, second.leading, second.batch)
        self._beta = beta[number].ctypes.data
        self._out = (_DATA_TYPES[product.out], columns.leading, columns.batch, product.batch, compute, _GEMM_DEFAULT)

    def launch(self, handle: int, stream: int, pointers: tuple[int, ...]) -> None:
        """Multiply on a stream, with pointers of a, b and c; sums of half precision are kept in float32.

        The handle stays on that stream: CuPy sets it before every call. Its workspace is the one that cuBLAS goes back
        to with every stream, a pool that streams share safely; what a capture needs becomes memory of the graph.
        """
        library = self._library
        library.set_stream(handle, stream)
        if not self._rounds:
            self._multiply(handle, pointers)
            return
        mode = _INT()
        library.get_mode(handle, ctypes.byref(mode))
        library.set_mode(handle, mode.value | _DISALLOW_REDUCED_PRECISION_REDUCTION)
        try:
            self._multiply(handle, pointers)
        finally:
            library.set_mode(handle, mode.value)

    def _multiply(self, handle: int, pointers: tuple[int, ...]) -> None:
        x, y, out = pointers
        if self._swapped:
            x, y = y, x
        self._library.multiply(handle, *self._before, x, *self._first, y, *self._second, self._beta, out, *self._out)
