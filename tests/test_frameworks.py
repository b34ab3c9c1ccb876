"""What frameworks share besides the matrix: float32 coordinates beside half data, addresses, other producers."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cudakit
from cudakit import frameworks
from cudakit.array import numpy_pointer
from cudakit.matrix import BRIDGES, bits

from .conftest import CPU_FRAMEWORKS, require
from .deformable_problems import COORDINATES, GEOMETRIES, OPERATORS, call, draw


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


def test_cuda_array_interfaces_are_adopted_by_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's arrays speak no DLPack. Here memory of the host plays that of a device, and NumPy plays CuPy."""

    class DeviceArray:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return self.values.__array_interface__

    cuda = ModuleType("cudakit.cuda")
    cuda.adopted = lambda x: x.values if isinstance(x, DeviceArray) else x
    cuda.empty = lambda shape, dtype, _: np.empty(shape, dtype)
    cuda.zeros = lambda shape, dtype, _: np.zeros(shape, dtype)
    cuda.contiguous, cuda.stream = np.ascontiguousarray, None
    monkeypatch.setitem(sys.modules, "cudakit.cuda", cuda)
    monkeypatch.setattr(cudakit, "cuda", cuda, raising=False)
    caches = (frameworks._cupy_framework, frameworks._cuda_interface_framework)
    try:
        for cached in caches:
            cached.cache_clear()
        image, grid = np.arange(16.0, dtype=np.float32).reshape(1, 1, 4, 4), np.zeros((1, 1, 1, 2), np.float32)
        found = cudakit.grid_sample(DeviceArray(image), DeviceArray(grid))
    finally:
        for cached in caches:
            cached.cache_clear()
    np.testing.assert_array_equal(found, [[[[7.5]]]])
