"""Devices, frameworks and random problems that all tests share."""

import importlib
import itertools
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import cudakit
from cudakit import op, staging
from cudakit.cli.matrix import BRIDGES

from .libraries import forget_surroundings
from .tolerances import NUMPY_DTYPES, grid_away_from_knots, rounded

collect_ignore = ["emulated"]  # which stands in for CuPy where that is asked for, and nowhere else


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a test module that cannot be imported fail: `--doctest-ignore-import-errors` is meant for adapters."""
    report = yield
    if report.skipped and "unable to import module" in str(report.longrepr):
        report.outcome, report.longrepr = "failed", str(report.longrepr)
    return report


Floats = NDArray[np.float64]

CPU_FRAMEWORKS = [name for name in BRIDGES if name != "cupy"]
FRAMEWORKS = frozenset(os.environ.get("CUDAKIT_TEST_FRAMEWORKS", "numpy").replace(" ", "").split(","))

# What a test needs is compiled on its first run, so tests share what they can: an image has three channels, for one,
# unless the number of channels is the point.
MODES = ("nearest", "bilinear", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
COMBINATIONS = list(itertools.product(MODES, PADDING_MODES, (False, True)))
# (n, mode, padding_mode, align_corners): each choice often enough, few enough to compile for every dtype
SOME_COMBINATIONS = [
    (1, "bilinear", "reflection", False),
    (1, "bicubic", "zeros", True),
    (2, "bilinear", "zeros", False),
    (2, "nearest", "reflection", True),
    (2, "bicubic", "border", False),
    (3, "nearest", "zeros", False),
    (3, "bilinear", "border", True),
    (3, "bicubic", "reflection", False),
]
# (n, mode, channels)
CHANNELS_LAST = [
    *((n, mode, 17) for n in (1, 2, 3) for mode in MODES),
    *((1, "nearest", 3), (2, "bilinear", 1), (2, "bicubic", 3), (3, "bilinear", 3)),
    *((2, "bicubic", 15), (2, "bilinear", 31), (2, "nearest", 63), (2, "bilinear", 127)),  # one less than whole vectors
]
SIZES = {1: (7,), 2: (5, 7), 3: (3, 5, 4)}  # an input of n dimensions
OUT = {1: (11,), 2: (5, 6), 3: (3, 4, 5)}  # a grid of n dimensions

# The fixtures that property tests use hold no state, so one of them may serve all examples of a test.
settings.register_profile(
    "cudakit",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("cudakit")


def require(framework: str) -> Any:
    """Import `framework`; skip where CUDAKIT_TEST_FRAMEWORKS does not list it, fail where it is listed but missing."""
    if framework not in FRAMEWORKS:
        pytest.skip(f"{framework} is not listed in CUDAKIT_TEST_FRAMEWORKS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a framework says of the machine while it is imported
            return importlib.import_module(framework)
    except ImportError as error:
        pytest.fail(f"{framework} is listed in CUDAKIT_TEST_FRAMEWORKS but cannot be imported: {error}")


def devices() -> list[str]:
    try:
        import cupy

        seen = cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:  # no CuPy, no driver, or no device: each has its own exception type
        seen = False
    return ["cpu", "cuda"] if seen or "cupy" in FRAMEWORKS else ["cpu"]


class Arrays:
    """Makes arrays on one device (NumPy's on the CPU, CuPy's on a GPU) and brings results back as float64."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.xp = np if device == "cpu" else importlib.import_module("cupy")

    def make(self, values: Any, dtype: str = "float32") -> Any:
        """Return a new contiguous array of `dtype` holding `values`."""
        return self.xp.asarray(np.array(values, order="C").astype(NUMPY_DTYPES[dtype]))

    def back(self, array: Any) -> Floats:
        """Return the values of `array` as a float64 NumPy array."""
        return np.asarray(array.get() if hasattr(array, "get") else array).astype(np.float64)


class Problem(NamedTuple):
    """Random arguments of `grid_sample` and its gradient, in float64 but exact in the dtype they were drawn for."""

    input: Floats
    grid: Floats
    grad_output: Floats


def draw(
    rng: np.random.Generator,
    sizes: Sequence[int],
    out: Sequence[int],
    *,
    batch: int = 2,
    channels: int = 3,
    dtype: str = "float32",
    grid_dtype: str | None = None,
    align_corners: bool = False,
) -> Problem:
    """Draw a problem; the grid reaches well outside the image and keeps away from the knots."""
    grid_shape = (batch, *out, len(sizes))
    return Problem(
        rounded(rng.normal(size=(batch, channels, *sizes)), dtype),
        grid_away_from_knots(rng, grid_shape, sizes, align_corners, grid_dtype or dtype),
        rounded(rng.normal(size=(batch, channels, *out)), dtype),
    )


def _sliced(xp: Any, array: Any) -> Any:
    base = xp.zeros([2 * size + 3 for size in array.shape], array.dtype)
    view = base[tuple(slice(3, 3 + 2 * size, 2) for size in array.shape)]
    view[...] = array
    return view


def _part(xp: Any, array: Any) -> Any:
    return xp.concatenate([array, array], -1)[..., : array.shape[-1]]


def _spaced(xp: Any, array: Any) -> Any:
    return xp.concatenate([array, array[..., :1]], -1)[..., :-1]


def _shifted(xp: Any, array: Any) -> Any:
    view = xp.zeros(array.size + 1, array.dtype)[1:].reshape(array.shape)
    view[...] = array
    return view


def _unaligned(xp: Any, array: Any) -> Any:
    if xp is not np:
        pytest.skip("only NumPy has unaligned arrays")
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _read_only(xp: Any, array: Any) -> Any:
    if xp is not np:
        pytest.skip("only NumPy has read-only arrays")
    array = array.copy()
    array.flags.writeable = False
    return array


# The same shape in other memory; all but the broadcast ones hold the same values too.
LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "transposed": lambda xp, array: xp.ascontiguousarray(array.T).T,
    "reversed": lambda xp, array: array[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "sliced": _sliced,
    "part of the last axis": _part,
    "part of the channels last": lambda xp, array: xp.moveaxis(_part(xp, xp.moveaxis(array, 1, -1)), -1, 1),
    "one number apart along the last axis": _spaced,
    "one number apart along the channels last": lambda xp, array: xp.moveaxis(
        _spaced(xp, xp.moveaxis(array, 1, -1)), -1, 1
    ),
    "one element behind a boundary": _shifted,
    "channels last": lambda xp, array: xp.moveaxis(xp.moveaxis(array, 1, -1).copy(order="C"), -1, 1),
    "broadcast over the batch": lambda xp, array: xp.broadcast_to(array[:1], array.shape),
    "broadcast over all but the last axis": lambda xp, array: xp.broadcast_to(array[:1, :1, :1], array.shape),
    "broadcast scalar": lambda xp, array: xp.broadcast_to(array.ravel()[:1].reshape([1] * array.ndim), array.shape),
    "read-only": _read_only,
    "unaligned": _unaligned,
}


# Those of channels last that a GPU cannot, or only just can, read in vectors.
NEAR_BOUNDARIES = ("one element behind a boundary", "one number apart along the last axis", "part of the last axis")


@pytest.fixture(params=devices())
def arrays(request: pytest.FixtureRequest) -> Arrays:
    """Array maker of every device present; "cuda" too where CuPy is listed as required."""
    if request.param == "cuda" and "cupy" in FRAMEWORKS:
        require("cupy")
    return Arrays(request.param)


@pytest.fixture
def device(arrays: Arrays) -> str:
    """Name of the device under test."""
    return arrays.device


@pytest.fixture(params=devices())
def torch_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where PyTorch makes tensors, unless it is told: on every device present.

    On a GPU what is added up by atomics is the same in every call here, and PyTorch's own convolutions are not rounded.
    """
    torch, device = require("torch"), request.param
    if device == "cpu":
        yield device
        return
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_default_device(device)
    cudakit.use_deterministic_algorithms(True)
    yield device
    cudakit.use_deterministic_algorithms(False)
    torch.set_default_device(None)


@pytest.fixture
def threads(arrays: Arrays) -> Iterator[None]:
    """Put the number of threads of a CPU back."""
    if arrays.device != "cpu":
        pytest.skip("threads of a CPU")
    before = cudakit.get_num_threads()
    yield
    cudakit.set_num_threads(before)


def forget() -> None:
    """Make every operator plan anew."""
    op._recipes.clear()
    op._plan.cache_clear()


@pytest.fixture
def one_image(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Copy a batch to other layouts image by image, or as many as there are CPU threads at a time."""
    for name in ("COPY_BYTES", "CUDA_COPY_BYTES"):
        monkeypatch.setattr(staging, name, 1)
    forget()
    yield
    forget()


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded generator, fresh for every test."""
    return np.random.default_rng(20260)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty cache folder; what `cudakit.host` remembers about its surroundings is forgotten before and after."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CUDAKIT_CACHE_DIR", str(folder))
    forget_surroundings()
    yield folder
    forget_surroundings()
