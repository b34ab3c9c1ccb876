"""Gradients that are the same bits in every run on a GPU, as a CPU's always are."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import rounding
from cudakit.deformable.conv_ops import NAMES as CONVOLUTION
from cudakit.op import OPS

from .conftest import OUT, SIZES, Arrays, devices, draw, forget, require
from .deformable_problems import GEOMETRIES, call, check
from .deformable_problems import draw as draw_deformable
from .specialisations import REPRODUCIBLE
from .test_deformable import check_channels_last
from .test_deformable_double_backward import case_of, deform_twice
from .test_double_backward import SAMPLING, sample_twice
from .test_sampling_gradients import check_gradients, make
from .tolerances import assert_close

pytestmark = pytest.mark.skipif("cuda" not in devices(), reason="there is no GPU")

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
OPERATORS = ("deform_col2im", "deform_im2col_backward", "deform_conv_backward")
NAMES = ("2-D of all sorts", "2-D of one channel a group")


@pytest.fixture(autouse=True)
def _mode() -> Iterator[None]:
    cudakit.use_deterministic_algorithms(True)
    yield
    cudakit.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("n", "mode", "channels"), [(1, "bilinear", 3), (2, "bicubic", 16), (3, "nearest", 3)])
@DTYPES
def test_samples(arrays: Arrays, rng: np.random.Generator, dtype: str, n: int, mode: str, channels: int) -> None:
    problem = draw(rng, SIZES[n], OUT[n], channels=channels, dtype=dtype)
    check_gradients(arrays, problem, mode, "reflection", dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", OPERATORS)
@DTYPES
def test_columns_and_convolutions(
    arrays: Arrays, rng: np.random.Generator, dtype: str, operator: str, name: str
) -> None:
    check(arrays, operator, draw_deformable(rng, GEOMETRIES[name], dtype).on(arrays, dtype), dtype)


@pytest.mark.parametrize("name", (*NAMES, "1-D", "3-D asymmetric, no mask"))
@pytest.mark.parametrize("operator", OPERATORS)
def test_channels_last(arrays: Arrays, rng: np.random.Generator, operator: str, name: str) -> None:
    check_channels_last(arrays, operator, draw_deformable(rng, GEOMETRIES[name]), lambda array: array)


# Many terms, of which each part holds fewer digits.
@pytest.mark.parametrize("parts", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_parts(
    arrays: Arrays, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str, parts: int
) -> None:
    monkeypatch.setattr(rounding, "DIGITS", {})
    monkeypatch.setattr(rounding, "FEWEST_DIGITS", 44 * parts - 1)  # 180 terms take 8 of 52 bits
    forget()
    assert rounding.rounded_parts(dtype, REPRODUCIBLE, 45 * 4) == parts
    made = make(arrays, draw(rng, (3, 4), (5, 9), dtype=dtype), dtype)
    found = arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input)
    cudakit.use_deterministic_algorithms(False)
    expected = arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input)
    forget()
    limit = 1e-6 if dtype == "float32" else 1e-11 if parts == 1 else 1e-15
    assert np.abs(found - expected).max() <= limit * 2 * np.abs(expected).max()


# Magnitudes whose squares and products leave the range of float32.
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e25])
def test_any_magnitude(arrays: Arrays, rng: np.random.Generator, scale: float) -> None:
    grad_output, x, grid = make(arrays, draw(rng, (5, 7), (6, 5)))
    small = cudakit.grid_sample_backward(grad_output, x, grid, needs=("input",)).input
    large = cudakit.grid_sample_backward(grad_output * np.float32(scale), x, grid, needs=("input",)).input
    assert_close(arrays.back(large) / scale, arrays.back(small), "float32")


@DTYPES
def test_what_is_not_finite_stays_where_it_belongs(arrays: Arrays, dtype: str) -> None:
    grad_output = np.ones((1, 4, 1))
    grad_output[0, :3, 0] = np.nan, np.inf, -np.inf
    x, grid = np.zeros((1, 4, 3)), np.zeros((1, 1, 1))
    made = [arrays.make(values, dtype) for values in (grad_output, x, grid)]
    found = arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input)
    np.testing.assert_array_equal(found[0, :, 1], [np.nan, np.inf, -np.inf, 1])
    np.testing.assert_array_equal(found[0, 3], [0, 1, 0])


@pytest.fixture
def turn(arrays: Arrays) -> Iterator[Callable[[bool], None]]:
    """Return what sets the order of an emulated GPU's blocks; a true one has its own in every run."""
    found = require("cupy") if arrays.device == "cuda" else None
    order = getattr(found, "run_forwards", lambda _: None)
    yield order
    order(False)


def runs(turn: Callable[[bool], None], function: Callable[[], Any]) -> list[Any]:
    """Return what a function returns in several runs."""
    found = []
    for forwards in (False, True, False, True):
        turn(forwards)
        found.append(function())
    return found


@pytest.mark.parametrize("channels", [3, 16])
@DTYPES
def test_samples_have_the_same_bits(
    arrays: Arrays, rng: np.random.Generator, turn: Callable[[bool], None], dtype: str, channels: int
) -> None:
    problem = draw(rng, (3, 4), (40, 50), channels=channels, dtype=dtype)
    made = make(arrays, problem, dtype)
    first, *others = runs(turn, lambda: arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input))
    assert all((other == first).all() for other in others)
    if hasattr(arrays.xp, "EMULATED") and dtype in ("float32", "float64"):  # the order would be seen
        cudakit.use_deterministic_algorithms(False)
        first, *others = runs(turn, lambda: arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input))
        assert not all((other == first).all() for other in others)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["2-D", "2-D of one channel a group"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convolutions_have_the_same_bits(
    arrays: Arrays, rng: np.random.Generator, turn: Callable[[bool], None], dtype: str, name: str, operator: str
) -> None:
    made = draw_deformable(rng, GEOMETRIES[name], dtype).on(arrays, dtype)
    first, *others = runs(turn, lambda: {key: arrays.back(x) for key, x in call(operator, made).items()})
    assert all((other[key] == first[key]).all() for other in others for key in first)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize(("n", "mode"), [(1, "bilinear"), (2, "bicubic"), (3, "bilinear")])
@DTYPES
def test_gradients_of_samples_gradients(
    arrays: Arrays, rng: np.random.Generator, dtype: str, n: int, mode: str, channels: int
) -> None:
    attributes = (mode, "reflection", True)
    sample_twice(arrays, rng, SIZES[n], OUT[n], attributes, dtypes=(dtype, dtype), channels=channels)


@pytest.mark.parametrize("geometry", ["1-D asymmetric, grouped, no bias", NAMES[0], "3-D asymmetric, no mask"])
@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
@DTYPES
def test_gradients_of_deformable_gradients(
    arrays: Arrays, rng: np.random.Generator, dtype: str, operator: str, geometry: str
) -> None:
    deform_twice(arrays, rng, operator, GEOMETRIES[geometry], (dtype, dtype), last=False)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_of_gradients_of_any_magnitude(arrays: Arrays, rng: np.random.Generator, scale: float) -> None:
    """A product of small and large numbers."""
    x, grid, grad_output = draw(rng, (5, 7), (6, 5))
    tangent, other = rng.standard_normal(grid.shape), np.float32(1 / scale)
    small, large = (
        OPS["grid_sample_double_backward"](tuple(map(arrays.make, (x, by_grid, grad, x, grid))), *SAMPLING)[1]
        for by_grid, grad in ((tangent, grad_output), (tangent * scale, grad_output * other))
    )
    assert_close(arrays.back(large), arrays.back(small), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_gradients_have_the_same_bits(
    arrays: Arrays, rng: np.random.Generator, turn: Callable[[bool], None], dtype: str
) -> None:
    x, grid, grad_output = draw(rng, (3, 4), (40, 50), channels=16, dtype=dtype)
    values = (x, rng.standard_normal(grid.shape), grad_output, x, grid)
    given = tuple(arrays.make(one, dtype) for one in values)
    op = OPS["grid_sample_double_backward"]
    first, *others = runs(turn, lambda: arrays.back(op(given, *SAMPLING)[1]))
    assert all((other == first).all() for other in others)
    if hasattr(arrays.xp, "EMULATED"):  # the order would be seen
        cudakit.use_deterministic_algorithms(False)
        first, *others = runs(turn, lambda: arrays.back(op(given, *SAMPLING)[1]))
        assert not all((other == first).all() for other in others)
        cudakit.use_deterministic_algorithms(True)
    p = draw_deformable(rng, GEOMETRIES["2-D"], dtype)
    *_, options = case_of("deform_conv", p, "channels_first")
    found = [None if x is None else arrays.make(x, dtype) for x in (getattr(p, name) for name in CONVOLUTION)]
    given = (*found, arrays.make(p.output, dtype), *found)
    first, *others = runs(turn, lambda: arrays.back(OPS["deform_conv2d_double_backward"](given, *options)[1]))
    assert all((other == first).all() for other in others)
