"""Which operators work on which framework's arrays in which dtype: tried, not believed.

``python -m cudakit.matrix FRAMEWORK`` tries one framework in this process and prints what it found as JSON, because not
every two frameworks can be imported side by side.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cudakit
from cudakit.array import numpy_dtype

Array = NDArray[Any]
DTYPES = ("float16", "bfloat16", "float32", "float64")
SIZE = (2, 4, 6, 5)
KERNEL = (3, 2)
SHAPES = {
    "theta": (2, 2, 3),
    "grid": (2, 6, 5, 2),
    "input": SIZE,
    "offset": (2, 24, 6, 6),
    "mask": (2, 12, 6, 6),
    "weight": (4, 2, *KERNEL),
    "bias": (4,),
    "columns": (2, 24, 36),
    "output": (2, 4, 6, 6),
    "sampled": SIZE,
}


def _im2col(a: dict[str, Any]) -> Any:
    return cudakit.deform_im2col(a["input"], a["offset"], KERNEL, padding=1, mask=a["mask"])


def _im2col_backward(a: dict[str, Any]) -> Any:
    return cudakit.deform_im2col_backward(a["columns"], a["input"], a["offset"], KERNEL, padding=1, mask=a["mask"])


def _conv(a: dict[str, Any]) -> Any:
    return cudakit.deform_conv2d(a["input"], a["offset"], a["weight"], a["bias"], padding=1, mask=a["mask"])


def _conv_backward(a: dict[str, Any]) -> Any:
    given = (a["output"], a["input"], a["offset"], a["weight"], a["bias"])
    return cudakit.deform_conv2d_backward(*given, padding=1, mask=a["mask"])


# Each with the names of the arrays that it takes.
OPERATORS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Any]]] = {
    "affine_grid": (("theta",), lambda a: cudakit.affine_grid(a["theta"], SIZE)),
    "affine_grid_backward": (("grid",), lambda a: cudakit.affine_grid_backward(a["grid"], SIZE)),
    "grid_sample": (("input", "grid"), lambda a: cudakit.grid_sample(a["input"], a["grid"])),
    "grid_sample_backward": (
        ("sampled", "input", "grid"),
        lambda a: cudakit.grid_sample_backward(a["sampled"], a["input"], a["grid"]),
    ),
    "deform_im2col": (("input", "offset", "mask"), _im2col),
    "deform_im2col_backward": (("columns", "input", "offset", "mask"), _im2col_backward),
    "deform_col2im": (
        ("columns", "offset", "mask"),
        lambda a: cudakit.deform_col2im(a["columns"], a["offset"], SIZE[2:], KERNEL, padding=1, mask=a["mask"]),
    ),
    "deform_conv2d": (("input", "offset", "weight", "bias", "mask"), _conv),
    "deform_conv2d_backward": (("output", "input", "offset", "weight", "bias", "mask"), _conv_backward),
}


def arguments(operator: str, dtype: str) -> dict[str, Array]:
    """Return the arrays that an operator takes, with NumPy's memory and ml_dtypes' bfloat16."""
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(SHAPES[name]).astype(numpy_dtype(dtype)) for name in OPERATORS[operator][0]}


def call(operator: str, arrays: dict[str, Any]) -> tuple[Any, ...]:
    """Call an operator and return its results."""
    results = OPERATORS[operator][1](arrays)
    return tuple(results) if isinstance(results, tuple) else (results,)


class Bridge(NamedTuple):
    """How a framework gets its arrays from NumPy's, and what it has: dtypes, and arrays that are not contiguous."""

    make: Callable[[Array], Any]
    dtypes: tuple[str, ...] = DTYPES
    strided: bool = False


def _torch(x: Array) -> Any:
    torch = import_module("torch")
    if x.dtype == numpy_dtype("bfloat16"):
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def _jax(x: Array) -> Any:
    jax = import_module("jax")
    with jax.enable_x64(True):
        return jax.numpy.asarray(x)


def _paddle(x: Array) -> Any:
    paddle = import_module("paddle")
    if x.dtype == numpy_dtype("bfloat16"):
        return paddle.to_tensor(x.astype(np.float32)).astype("bfloat16")
    return paddle.to_tensor(x)


def _cupy(x: Array) -> Any:
    return import_module("cupy").asarray(x)


BRIDGES = {
    "numpy": Bridge(np.array, strided=True),
    "cupy": Bridge(_cupy, ("float16", "float32", "float64"), strided=True),
    "torch": Bridge(_torch, strided=True),
    "jax": Bridge(_jax),
    "tensorflow": Bridge(lambda x: import_module("tensorflow").constant(x)),
    "paddle": Bridge(_paddle),
    "array_api_strict": Bridge(
        lambda x: import_module("array_api_strict").asarray(x, copy=True), ("float32", "float64"), strided=True
    ),
}


def dtypes(framework: str, trying: bool = False) -> Sequence[str]:
    """Return the dtypes that a framework has here, or those that can be compared with NumPy's."""
    found = BRIDGES[framework].dtypes
    if (trying or framework == "numpy") and find_spec("ml_dtypes") is None:
        found = tuple(name for name in found if name != "bfloat16")
    return found


def bits(x: Any) -> bytes:
    """Return an array's elements, whatever its kind."""
    kind = type(x).__module__.partition(".")[0]
    if kind == "cupy":
        x = x.get()
    elif kind == "torch":
        x = x.contiguous().view(import_module("torch").uint8)
    elif kind == "paddle" and str(x.dtype).endswith("bfloat16"):
        x = x.view("int16")
    return np.asarray(x).tobytes()


def tried(framework: str) -> Iterator[tuple[str, str, str]]:
    """Call every operator in every dtype that the framework has.

    Yields
    ------
    tuple of str
        Operator, dtype, and what is wrong ("" for nothing). On a CPU results are to be NumPy's bit for bit.
    """
    bridge = BRIDGES[framework]
    for operator in OPERATORS:
        for dtype in dtypes(framework, trying=True):
            try:
                yield operator, dtype, _compare(operator, dtype, bridge.make, exact=framework != "cupy")
            except Exception as error:  # whatever a framework raises
                yield operator, dtype, f"{type(error).__name__}: {error}"


def _compare(operator: str, dtype: str, make: Callable[[Array], Any], exact: bool) -> str:
    arrays = arguments(operator, dtype)
    own = {name: make(array) for name, array in arrays.items()}
    kind = type(next(iter(own.values())))
    for mine, reference in zip(call(operator, own), call(operator, arrays), strict=True):
        if type(mine) is not kind:
            return f"returned {type(mine).__name__} for {kind.__name__}"
        if exact and bits(mine) != reference.tobytes():
            return "other values than on NumPy arrays"
    return ""


if __name__ == "__main__":
    print(json.dumps(list(tried(sys.argv[1]))))
