"""One body for every framework: the bits of the NumPy road, and the caller's own kind of array back."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cudakit
from cudakit.array import numpy_pointer

from .conftest import require
from .deformable_problems import COORDINATES, GEOMETRIES, OPERATORS, call, draw

DTYPES = ("float16", "bfloat16", "float32", "float64")


def _torch(x: np.ndarray) -> Any:
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def _jax(x: np.ndarray) -> Any:
    import jax

    with jax.enable_x64(True):
        return jax.numpy.asarray(x)


def _tensorflow(x: np.ndarray) -> Any:
    return importlib.import_module("tensorflow").constant(x)


def _paddle(x: np.ndarray) -> Any:
    paddle = importlib.import_module("paddle")
    if x.dtype == ml_dtypes.bfloat16:
        return paddle.to_tensor(x.astype(np.float32)).astype("bfloat16")
    return paddle.to_tensor(x)


def _array_api_strict(x: np.ndarray) -> Any:
    return importlib.import_module("array_api_strict").asarray(x)


MAKERS: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": np.asarray,
    "torch": _torch,
    "jax": _jax,
    "tensorflow": _tensorflow,
    "paddle": _paddle,
    "array_api_strict": _array_api_strict,
}


def _bits(x: Any) -> bytes:
    """Return an array's elements, whatever its kind."""
    if type(x).__module__.startswith("torch"):
        import torch

        x = x.contiguous().view(torch.uint8)
    elif type(x).__module__.startswith("paddle") and str(x.dtype).endswith("bfloat16"):
        x = x.view("int16")
    return np.asarray(x).tobytes()


def _sampling(make: Callable[[np.ndarray], Any], storage: np.dtype) -> list[Any]:
    """Run every operator of the sampling family, each on NumPy's results of the one before."""
    rng, size = np.random.default_rng(3), (2, 3, 5, 4)
    image = rng.standard_normal((2, 3, 6, 7)).astype(storage)
    theta = (np.eye(2, 3) + rng.standard_normal((2, 2, 3)) * 0.2).astype(storage)
    grid = cudakit.affine_grid(theta, size)
    samples = cudakit.grid_sample(image, grid)
    gradients = cudakit.grid_sample_backward(samples, image, grid)
    return [
        cudakit.affine_grid(make(theta), size),
        cudakit.grid_sample(make(image), make(grid)),
        *cudakit.grid_sample_backward(make(samples), make(image), make(grid)),
        cudakit.affine_grid_backward(make(gradients.grid), size),
    ]


def _deforming(make: Callable[[np.ndarray], Any], storage: np.dtype) -> list[Any]:
    """Run every deformable operator."""
    problem = draw(np.random.default_rng(3), GEOMETRIES["2-D of all sorts"])
    made = problem.map(lambda _, array: make(array.astype(storage)))
    return [result for operator in OPERATORS for result in call(operator, made).values()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [_sampling, _deforming])
@pytest.mark.parametrize("framework", MAKERS)
def test_same_bits_and_kind(framework: str, family: Callable[..., list[Any]], dtype: str) -> None:
    require(framework)
    if framework == "array_api_strict" and dtype in ("float16", "bfloat16"):
        pytest.skip("the standard has no half precision")
    make, storage = MAKERS[framework], np.dtype(getattr(ml_dtypes, dtype, dtype))
    kind = type(make(np.zeros(1, storage)))
    for own, reference in zip(family(make, storage), family(np.asarray, storage), strict=True):
        assert type(own) is kind
        assert _bits(own) == reference.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("framework", MAKERS)
def test_float32_offsets_beside_half_data(framework: str, dtype: str) -> None:
    require(framework)
    if framework == "array_api_strict":
        pytest.skip("the standard has no half precision")
    problem = draw(np.random.default_rng(3), GEOMETRIES["2-D of all sorts"])
    own, reference = (
        problem.map(lambda name, array, make=make: make(array.astype("float32" if name in COORDINATES else dtype)))
        for make in (MAKERS[framework], np.asarray)
    )
    for operator in OPERATORS:
        for name, expected in call(operator, reference).items():
            assert expected.dtype == ("float32" if name in COORDINATES else dtype)
            assert _bits(call(operator, own)[name]) == expected.tobytes()


def test_the_address_of_numpy_arrays(tmp_path: Path) -> None:
    class Own(np.ndarray):
        """An array with attributes of its own."""

    base = np.arange(24.0).reshape(4, 6)
    mapped = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=(3, 4))
    fixed = base[1:, ::-2]
    fixed.flags.writeable = False
    arrays = [base, fixed, mapped, mapped[2:], base.view(Own), np.float32(1)[None], np.ones(3, ml_dtypes.bfloat16)]
    for x in [*arrays, np.empty((0, 2)), np.broadcast_to(base[:1], (3, 6))]:
        assert numpy_pointer(x) == x.__array_interface__["data"][0]


def test_onnxruntime_values_are_read() -> None:
    onnxruntime = require("onnxruntime")
    image, grid = np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 3, 3, 2), np.float32)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(x) for x in (image, grid)]
    np.testing.assert_array_equal(np.from_dlpack(cudakit.grid_sample(*values)), np.ones((1, 2, 3, 3)))
