"""Which operators work on which framework's arrays in which dtype: tried, not believed.

``python -m cudakit.cli.matrix FRAMEWORK`` tries one framework in this process and prints what it found as JSON, because
not every two frameworks can be imported side by side.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cudakit
from cudakit.array import numpy_dtype

Array = NDArray[Any]
DTYPES = ("float16", "bfloat16", "float32", "float64")
Named = dict[str, Any]  # arrays by their names
SIZES = {1: (2, 4, 6), 2: (2, 4, 6, 5), 3: (2, 4, 4, 3, 2)}
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 1, 2)}
OFFSET_GROUPS, GROUPS, PADDING = 2, 2, 1


def _shapes(n: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays in n dimensions."""
    (batch, channels, *space), kernel = SIZES[n], KERNELS[n]
    out = [size + 2 * PADDING - width + 1 for size, width in zip(space, kernel, strict=True)]
    taps = prod(kernel)
    return {
        "theta": (batch, n, n + 1),
        "grid": (batch, *space, n),
        "input": SIZES[n],
        "offset": (batch, OFFSET_GROUPS * taps * n, *out),
        "mask": (batch, OFFSET_GROUPS * taps, *out),
        "weight": (channels, channels // GROUPS, *kernel),
        "bias": (channels,),
        "columns": (batch, channels * taps, prod(out)),
        "output": (batch, channels, *out),
        "sampled": SIZES[n],
    }


def _im2col(a: Named) -> Any:
    return cudakit.deform_im2col(a["input"], a["offset"], KERNELS[2], padding=PADDING, mask=a["mask"])


def _im2col_backward(a: Named) -> Any:
    arrays = (a["columns"], a["input"], a["offset"])
    return cudakit.deform_im2col_backward(*arrays, KERNELS[2], padding=PADDING, mask=a["mask"])


def _col2im(a: Named) -> Any:
    arrays, space = (a["columns"], a["offset"]), SIZES[2][2:]
    return cudakit.deform_col2im(*arrays, space, KERNELS[2], padding=PADDING, mask=a["mask"])


class Operator(NamedTuple):
    """The arrays that an operator takes, a call of it, and in how many dimensions."""

    arrays: tuple[str, ...]
    call: Callable[[Named], Any]
    n: int = 2


def _convolutions(n: int) -> Iterator[tuple[str, Operator]]:
    forward, backward = (getattr(cudakit, f"deform_conv{n}d{kind}") for kind in ("", "_backward"))
    names = ("input", "offset", "weight", "bias")

    def convolve(a: Named) -> Any:
        return forward(*[a[name] for name in names], padding=PADDING, mask=a["mask"])

    def differentiate(a: Named) -> Any:
        return backward(*[a[name] for name in ("output", *names)], padding=PADDING, mask=a["mask"])

    yield f"deform_conv{n}d", Operator((*names, "mask"), convolve, n)
    yield f"deform_conv{n}d_backward", Operator(("output", *names, "mask"), differentiate, n)


OPERATORS = {
    "affine_grid": Operator(("theta",), lambda a: cudakit.affine_grid(a["theta"], SIZES[2])),
    "affine_grid_backward": Operator(("grid",), lambda a: cudakit.affine_grid_backward(a["grid"], SIZES[2])),
    "grid_sample": Operator(("input", "grid"), lambda a: cudakit.grid_sample(a["input"], a["grid"])),
    "grid_sample_backward": Operator(
        ("sampled", "input", "grid"),
        lambda a: cudakit.grid_sample_backward(a["sampled"], a["input"], a["grid"]),
    ),
    "deform_im2col": Operator(("input", "offset", "mask"), _im2col),
    "deform_im2col_backward": Operator(("columns", "input", "offset", "mask"), _im2col_backward),
    "deform_col2im": Operator(("columns", "offset", "mask"), _col2im),
    **{name: operator for n in (1, 2, 3) for name, operator in _convolutions(n)},
}


def arguments(operator: str, dtype: str) -> dict[str, Array]:
    """Return the arrays that an operator takes, with NumPy's memory and ml_dtypes' bfloat16."""
    rng, shapes = np.random.default_rng(7), _shapes(OPERATORS[operator].n)
    return {name: rng.standard_normal(shapes[name]).astype(numpy_dtype(dtype)) for name in OPERATORS[operator].arrays}


def call(operator: str, arrays: dict[str, Any]) -> tuple[Any, ...]:
    """Call an operator and return its results."""
    results = OPERATORS[operator].call(arrays)
    return tuple(results) if isinstance(results, tuple) else (results,)


class Bridge(NamedTuple):
    """How a framework gets its arrays from NumPy's, and its dtypes."""

    make: Callable[[Array], Any]
    dtypes: tuple[str, ...] = DTYPES


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
    "numpy": Bridge(np.array),
    "cupy": Bridge(_cupy),
    "torch": Bridge(_torch),
    "jax": Bridge(_jax),
    "tensorflow": Bridge(lambda x: import_module("tensorflow").constant(x)),
    "paddle": Bridge(_paddle),
    "array_api_strict": Bridge(
        lambda x: import_module("array_api_strict").asarray(x, copy=True), ("float32", "float64")
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
