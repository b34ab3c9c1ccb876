"""Gradients of `affine_grid` and `grid_sample` against the oracle, and as adjoints of the values."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cudakit
from cudakit import reference

from .conftest import (
    CHANNELS_LAST,
    COMBINATIONS,
    LAYOUTS,
    MODES,
    NEAR_BOUNDARIES,
    OUT,
    SIZES,
    SOME_COMBINATIONS,
    Arrays,
    Problem,
    draw,
)
from .tolerances import TOLERANCES, assert_close, near_knot, rounded


def make(arrays: Arrays, problem: Problem, dtype: str = "float32", grid_dtype: str | None = None) -> tuple[Any, ...]:
    """Return (grad_output, input, grid) on the device."""
    grid = arrays.make(problem.grid, grid_dtype or dtype)
    return arrays.make(problem.grad_output, dtype), arrays.make(problem.input, dtype), grid


def check_gradients(
    arrays: Arrays, problem: Problem, *attributes: Any, dtype: str = "float32", grid_dtype: str | None = None
) -> None:
    """Compare both gradients, and that each is of its argument's kind."""
    grad_output, x, grid = make(arrays, problem, dtype, grid_dtype)
    gradients = cudakit.grid_sample_backward(grad_output, x, grid, *attributes)
    expected = reference.grid_sample_backward(problem.grad_output, *problem[:2], *attributes)
    for actual, argument, values, name in zip(
        gradients, (x, grid), expected, (dtype, grid_dtype or dtype), strict=True
    ):
        assert type(actual) is type(argument)
        assert actual.dtype == argument.dtype
        assert_close(arrays.back(actual), values, name)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_mode(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    problem = draw(rng, SIZES[n], OUT[n], align_corners=align_corners)
    check_gradients(arrays, problem, mode, padding_mode, align_corners)


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_dtype(
    arrays: Arrays, rng: np.random.Generator, dtype: str, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    problem = draw(rng, SIZES[n], OUT[n], dtype=dtype, align_corners=align_corners)
    check_gradients(arrays, problem, mode, padding_mode, align_corners, dtype=dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_float32_grid_beside_half_data_has_a_float32_gradient(
    arrays: Arrays, rng: np.random.Generator, dtype: str, mode: str
) -> None:
    problem = draw(rng, (5, 7), (4, 6), dtype=dtype, grid_dtype="float32")
    check_gradients(arrays, problem, mode, dtype=dtype, grid_dtype="float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_gradients_are_summed_in_float32(arrays: Arrays, dtype: str) -> None:
    # 4096 additions of 1 to one pixel: a sum kept in the half type would stop at 2048 or at 256.
    problem = Problem(np.zeros((1, 1, 3, 3)), np.zeros((1, 64, 64, 2)), np.ones((1, 1, 64, 64)))
    check_gradients(arrays, problem, dtype=dtype)


@pytest.mark.parametrize("attributes", COMBINATIONS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1), (2, 1), (1, 13), (1, 2, 1), (2, 2, 2)])
def test_sizes_smaller_than_the_footprint(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], attributes: tuple[str, str, bool]
) -> None:
    check_gradients(arrays, draw(rng, sizes, OUT[len(sizes)], align_corners=attributes[2]), *attributes)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("batch", "channels"), [(0, 3), (3, 0), (0, 0), (1, 1), (3, 1), (3, 2), (1, 4), (1, 5), (2, 8), (3, 17), (1, 64)]
)
def test_batches_and_channels(arrays: Arrays, rng: np.random.Generator, batch: int, channels: int, mode: str) -> None:
    check_gradients(arrays, draw(rng, (5, 7), (3, 11), batch=batch, channels=channels), mode)


@pytest.mark.parametrize("out", [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 2)])
def test_empty_outputs_have_zero_gradients(arrays: Arrays, rng: np.random.Generator, out: tuple[int, ...]) -> None:
    check_gradients(arrays, draw(rng, SIZES[len(out)], out))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", [(4, 6), (1, 3)], ids=["all of it", "little of it"])
@pytest.mark.parametrize("channels", [3, 6, 33])
def test_every_layout(
    arrays: Arrays, rng: np.random.Generator, channels: int, out: tuple[int, ...], layout: str, dtype: str
) -> None:
    if arrays.device == "cuda" and dtype == "bfloat16":
        pytest.skip("the layouts are made by NumPy's and CuPy's own functions")
    problem = draw(rng, (5, 7), out, channels=channels, dtype=dtype)
    made = [LAYOUTS[layout](arrays.xp, array) for array in make(arrays, problem, dtype)]
    expected = reference.grid_sample_backward(*(arrays.back(array) for array in made))
    for actual, values in zip(cudakit.grid_sample_backward(*made), expected, strict=True):
        assert_close(arrays.back(actual), values, dtype)
    assert_close(arrays.back(cudakit.grid_sample_backward(*made, needs=("input",)).input), expected[0], dtype)
    assert_close(arrays.back(cudakit.grid_sample_backward(*made, needs=("grid",)).grid), expected[1], dtype)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [1, 33])
def test_an_image_of_which_little_is_read_is_not_copied(channels: int, layout: str) -> None:
    """It would take terabytes."""
    last, sizes = layout == "channels_last", (1 << 20, 1 << 20)
    large = np.broadcast_to(np.float32(1), (1, *sizes, channels) if last else (1, channels, *sizes))
    grid = np.linspace(-0.9, 0.9, 80, dtype=np.float32).reshape(1, 1, 40, 2)
    grad = np.ones((1, 1, 40, channels) if last else (1, channels, 1, 40), np.float32)
    found = cudakit.grid_sample_backward(grad, large, grid, needs=("grid",), data_format=layout)
    assert not found.grid.any()


@pytest.mark.parametrize(("n", "mode", "channels"), CHANNELS_LAST)
def test_channels_last(arrays: Arrays, rng: np.random.Generator, n: int, mode: str, channels: int) -> None:
    x, grid, grad_output = draw(rng, SIZES[n], OUT[n], channels=channels)
    last = [arrays.make(np.moveaxis(values, 1, -1)) for values in (grad_output, x)]
    gradients = cudakit.grid_sample_backward(*last, arrays.make(grid), mode, data_format="channels_last")
    grad_input, grad_grid = reference.grid_sample_backward(grad_output, x, grid, mode)
    assert_close(arrays.back(gradients.input), np.moveaxis(grad_input, 1, -1), "float32")
    assert_close(arrays.back(gradients.grid), grad_grid, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", NEAR_BOUNDARIES)
@pytest.mark.parametrize("moved", [0, 1, 2], ids=["grad_output", "input", "grid"])
@pytest.mark.parametrize("channels", [16, 17])
def test_channels_last_near_boundaries(
    arrays: Arrays, rng: np.random.Generator, channels: int, moved: int, layout: str, dtype: str
) -> None:
    grad_output, x, grid = make(arrays, draw(rng, (5, 7), (4, 6), channels=channels, dtype=dtype), dtype)
    made = [arrays.xp.moveaxis(grad_output, 1, -1).copy(order="C"), arrays.xp.moveaxis(x, 1, -1).copy(order="C"), grid]
    expected = cudakit.grid_sample_backward(grad_output, x, grid)
    made[moved] = LAYOUTS[layout](arrays.xp, made[moved])
    for needs in (("input", "grid"), ("input",), ("grid",)):
        found = cudakit.grid_sample_backward(*made, needs=needs, data_format="channels_last")
        if found.input is not None:
            assert_close(np.moveaxis(arrays.back(found.input), -1, 1), arrays.back(expected.input), dtype)
        if found.grid is not None:
            assert_close(arrays.back(found.grid), arrays.back(expected.grid), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["channels last", "part of the channels last", "one element behind a boundary"])
def test_images_that_are_copied_one_at_a_time(
    arrays: Arrays, rng: np.random.Generator, one_image: None, layout: str, dtype: str
) -> None:
    problem = draw(rng, (5, 7), (4, 6), batch=5, channels=16, dtype=dtype)
    made = [LAYOUTS[layout](arrays.xp, array) for array in make(arrays, problem, dtype)]
    expected = reference.grid_sample_backward(problem.grad_output, *problem[:2])
    for actual, values in zip(cudakit.grid_sample_backward(*made), expected, strict=True):
        assert_close(arrays.back(actual), values, dtype)


@pytest.mark.parametrize("needs", [("input",), ("grid",), ("grid", "input"), ()])
@pytest.mark.parametrize("mode", MODES)
def test_only_what_is_needed_is_computed(
    arrays: Arrays, rng: np.random.Generator, mode: str, needs: tuple[str, ...]
) -> None:
    problem = draw(rng, (5, 7), (4, 6))
    gradients = cudakit.grid_sample_backward(*make(arrays, problem), mode, needs=needs)
    expected = reference.grid_sample_backward(problem.grad_output, *problem[:2], mode)
    for name, values in zip(("input", "grid"), expected, strict=True):
        gradient = getattr(gradients, name)
        assert (gradient is None) == (name not in needs)
        if gradient is not None:
            assert_close(arrays.back(gradient), values, "float32")


@pytest.mark.parametrize(
    ("batch", "channels", "sizes", "out"),
    [(2, 3, (61, 67), (130, 131)), (1, 64, (29, 31), (37, 41)), (1, 3, (11, 13, 17), (19, 23, 29))],
)
@pytest.mark.parametrize("mode", MODES)
def test_many_tiles(
    arrays: Arrays,
    rng: np.random.Generator,
    mode: str,
    batch: int,
    channels: int,
    sizes: tuple[int, ...],
    out: tuple[int, ...],
) -> None:
    x = rounded(rng.normal(size=(batch, channels, *sizes)), "float32")
    grid = rounded(rng.uniform(-1.1, 1.1, size=(batch, *out, len(sizes))), "float32")
    band = near_knot(grid, sizes, False).any(axis=-1)
    assert band.mean() < 0.02
    # Without a gradient of their own, the few samples near a knot cannot move the sums of their neighbours.
    grad_output = rounded(rng.normal(size=(batch, channels, *out)), "float32") * ~band[:, None]
    expected = reference.grid_sample_backward(grad_output, x, grid, mode)
    problem = Problem(x, grid, grad_output)
    for actual, values in zip(cudakit.grid_sample_backward(*make(arrays, problem), mode), expected, strict=True):
        assert_close(arrays.back(actual), values, "float32", scale=max(sizes) / 8)


@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads(
    arrays: Arrays, rng: np.random.Generator, threads: int, batch: int, channels: int
) -> None:
    before = cudakit.get_num_threads()
    try:
        cudakit.set_num_threads(threads)
        check_gradients(arrays, draw(rng, (31, 37), (64, 65), batch=batch, channels=channels))
    finally:
        cudakit.set_num_threads(before)


def test_arguments_are_not_written(arrays: Arrays, rng: np.random.Generator) -> None:
    problem = draw(rng, (5, 7), (4, 6))
    made = make(arrays, problem)
    cudakit.grid_sample_backward(*made)
    for array, values in zip(made, (problem.grad_output, problem.input, problem.grid), strict=True):
        assert (arrays.back(array) == values).all()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    data=st.data(),
    batch=st.integers(0, 3),
    channels=st.sampled_from([0, 3]),
    attributes=st.sampled_from(COMBINATIONS),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_problems(
    arrays: Arrays,
    sizes: list[int],
    data: st.DataObject,
    batch: int,
    channels: int,
    attributes: tuple[str, str, bool],
    seed: int,
) -> None:
    out = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)))
    rng = np.random.default_rng(seed)
    problem = draw(rng, sizes, out, batch=batch, channels=channels, align_corners=attributes[2])
    check_gradients(arrays, problem, *attributes)


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
def test_the_gradient_to_the_input_is_the_adjoint_of_the_values(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    problem = draw(rng, SIZES[n], OUT[n], dtype="float64", align_corners=align_corners)
    grad_output, x, grid = make(arrays, problem, "float64")
    values = cudakit.grid_sample(x, grid, mode, padding_mode, align_corners)
    gradients = cudakit.grid_sample_backward(grad_output, x, grid, mode, padding_mode, align_corners, needs=("input",))
    forth = np.sum(arrays.back(values) * problem.grad_output)
    back = np.sum(problem.input * arrays.back(gradients.input))
    assert forth == pytest.approx(back, rel=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", [(5, 7), (1, 4), (1, 1), (3, 5, 4), (2, 1, 1), (41, 97)])
def test_affine_grid(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], dtype: str, align_corners: bool
) -> None:
    size = (3, 2, *sizes)
    values = rounded(rng.normal(size=(3, *sizes, len(sizes))), dtype)
    grad_grid = arrays.make(values, dtype)
    grad_theta = cudakit.affine_grid_backward(grad_grid, size, align_corners)
    assert type(grad_theta) is type(grad_grid)
    assert grad_theta.dtype == grad_grid.dtype
    assert_close(arrays.back(grad_theta), reference.affine_grid_backward(values, size, align_corners), dtype)


def test_affine_grid_of_a_strided_gradient(arrays: Arrays, rng: np.random.Generator) -> None:
    grad_grid = arrays.make(rng.normal(size=(2, 5, 4, 3))).transpose(3, 2, 1, 0)[:, ::-1]
    expected = reference.affine_grid_backward(arrays.back(grad_grid), (3, 1, 4, 5))
    assert_close(arrays.back(cudakit.affine_grid_backward(grad_grid, (3, 1, 4, 5))), expected, "float32")


def test_affine_grid_of_an_empty_batch(arrays: Arrays) -> None:
    assert cudakit.affine_grid_backward(arrays.make(np.zeros((0, 4, 5, 2))), (0, 3, 4, 5)).shape == (0, 2, 3)
