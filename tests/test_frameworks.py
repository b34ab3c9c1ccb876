"""What frameworks share besides the matrix: float32 coordinates beside half data, addresses, other producers."""

import ctypes
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cudakit
from cudakit import dlpack
from cudakit.array import numpy_pointer
from cudakit.cli.matrix import BRIDGES, bits

from .conftest import CPU_FRAMEWORKS, devices, require
from .deformable_problems import COORDINATES, GEOMETRIES, OPERATORS, call, draw


def test_a_call_while_another_thread_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # there, but not yet what it will be
    assert cudakit.affine_grid(np.zeros((1, 2, 3)), (1, 1, 2, 2)).shape == (1, 2, 2, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_float32_offsets_beside_half_data(framework: str, dtype: str) -> None:
    require(framework)
    if dtype not in BRIDGES[framework].dtypes:
        pytest.skip("the framework has no half precision")
    problem = draw(np.random.default_rng(3), GEOMETRIES["2-D of all sorts"])
    own, reference = (
        problem.map(lambda name, array, make=make: make(array.astype("float32" if name in COORDINATES else dtype)))
        for make in (BRIDGES[framework].make, np.asarray)
    )
    for operator in OPERATORS:
        for name, expected in call(operator, reference).items():
            assert expected.dtype == ("float32" if name in COORDINATES else dtype)
            assert bits(call(operator, own)[name]) == expected.tobytes()


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


ON_A_GPU = pytest.mark.skipif("cuda" not in devices(), reason="there is no GPU")
IMAGE, GRID = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), np.zeros((1, 1, 1, 2), np.float32)


@ON_A_GPU
def test_cuda_array_interfaces_are_adopted_by_cupy() -> None:
    """Numba's arrays speak no DLPack."""
    cupy = require("cupy")

    class DeviceArray:
        def __init__(self, values: Any) -> None:
            self.values = cupy.asarray(values)

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return self.values.__cuda_array_interface__

    found = cudakit.grid_sample(DeviceArray(IMAGE), DeviceArray(GRID))
    assert type(found) is cupy.ndarray
    np.testing.assert_array_equal(found.get(), [[[[7.5]]]])


@ON_A_GPU
@pytest.mark.parametrize("turned", [False, True])
def test_any_producer_on_cuda_gets_arrays_of_cupy(turned: bool) -> None:
    cupy = require("cupy")

    class Producer:
        def __init__(self, values: Any) -> None:
            self.values = cupy.asarray(values[::-1].copy())[::-1] if turned else cupy.asarray(values)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.values.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.values.__dlpack__(**options)

    theta = np.arange(12, dtype=np.float32).reshape(2, 2, 3)  # what is turned is copied: it must be contiguous
    found = cudakit.affine_grid(Producer(theta), (2, 1, 3, 4))
    assert type(found) is cupy.ndarray
    np.testing.assert_array_equal(found.get(), cudakit.affine_grid(theta, (2, 1, 3, 4)))


@pytest.mark.parametrize("turned", [False, True])
def test_bfloat16_of_any_producer(turned: bool) -> None:
    """NumPy's arrays come back, which lend no bfloat16 through DLPack."""
    torch = require("torch")

    class Producer:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__(**options)

    x, grid = torch.randn(1, 2, 5, 5).bfloat16(), torch.rand(1, 3, 3, 2).bfloat16()
    grid = grid.transpose(1, 2) if turned else grid
    found = cudakit.grid_sample(Producer(x), Producer(grid))
    expected = cudakit.grid_sample(x, grid)
    np.testing.assert_array_equal(found.astype(np.float32), expected.float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_whose_library_is_told_by_their_namespace(dtype: str) -> None:
    """It takes bfloat16 through DLPack, which NumPy does not lend."""
    torch = require("torch")
    library = ModuleType("library")

    class Array:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __array_namespace__(self) -> ModuleType:
            return library

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__(**options)

    library.from_dlpack = lambda x: Array(torch.from_dlpack(x))  # type: ignore[attr-defined]
    x, grid = torch.randn(1, 2, 5, 5).to(getattr(torch, dtype)), torch.rand(1, 3, 3, 2).to(getattr(torch, dtype))
    found = cudakit.grid_sample(Array(x), Array(grid.transpose(1, 2)))
    assert type(found) is Array
    torch.testing.assert_close(found.tensor, cudakit.grid_sample(x, grid.transpose(1, 2)), rtol=0, atol=0)


def test_memory_that_belongs_to_an_export() -> None:
    """What is exported may exist as long as its capsule alone."""

    class Producer:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.copy().__dlpack__(**options)

    rng = np.random.default_rng(7)
    for turn in (lambda x: x, np.asfortranarray, lambda x: x[..., ::2]):  # the last is copied before it is used
        x, grid = turn(rng.random((1, 3, 300, 300), np.float32)), rng.random((1, 40, 40, 2), np.float32)
        assert np.array_equal(cudakit.grid_sample(Producer(x), Producer(grid)), cudakit.grid_sample(x, grid))


def test_vectors_as_elements_are_refused() -> None:
    """A producer may say that its elements are vectors, of so many lanes."""

    class Producer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **_: Any) -> Any:
            capsule = np.zeros((1, 1, 4, 4), np.float32).__dlpack__()
            address = dlpack._capsule_pointer(capsule, b"dltensor")
            ctypes.c_uint16.from_address(address + 22).value = 4  # behind the pointer, 3 ints, code and bits
            return capsule

    with pytest.raises(TypeError, match=r"input must have a dtype among .*, got float32x4"):
        cudakit.grid_sample(Producer(), Producer())


def test_why_an_older_producer_refuses() -> None:
    """What is read-only only a newer protocol can show."""

    class Producer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, stream: Any = None) -> Any:
            raise BufferError("this one is read-only")

    with pytest.raises(TypeError, match="input must be readable through DLPack, got this one is read-only"):
        cudakit.grid_sample(Producer(), Producer())


def test_one_packed_record() -> None:
    """A single row lies no whole number of elements from the next, which there is not."""
    record = np.zeros(1, [("label", "u1"), ("image", "f4", (3, 4, 5)), ("more", "u1")])
    record["image"] = np.random.default_rng(8).random((3, 4, 5))
    grid = np.zeros((1, 2, 2, 2), np.float32)
    assert np.array_equal(cudakit.grid_sample(record["image"], grid), cudakit.grid_sample(record["image"].copy(), grid))


def test_fields_of_packed_records() -> None:
    """Numbers that lie no whole number of them apart."""
    records = np.zeros((1, 2, 4, 4), [("flag", "u2"), ("value", "f4")])
    records["value"] = np.random.default_rng(5).standard_normal(records.shape)
    grid = np.random.default_rng(6).uniform(-1, 1, (1, 3, 3, 2)).astype("f4")
    field, plain = records["value"], records["value"].copy()
    assert np.array_equal(cudakit.grid_sample(field, grid), cudakit.grid_sample(plain, grid))
    found = cudakit.grid_sample_backward(cudakit.grid_sample(field, grid), field, grid)
    assert np.array_equal(found.grid, cudakit.grid_sample_backward(cudakit.grid_sample(plain, grid), plain, grid).grid)
