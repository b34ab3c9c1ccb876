"""Values of `affine_grid` and `grid_sample` against the oracle, for every kind of array and argument."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cudakit
from cudakit import reference

from .conftest import CHANNELS_LAST, COMBINATIONS, LAYOUTS, MODES, OUT, SIZES, SOME_COMBINATIONS, Arrays, Problem, draw
from .tolerances import TOLERANCES, assert_close, near_knot, rounded

OTHER_DTYPES = ("float64", "float16", "bfloat16")


def check_values(
    arrays: Arrays, problem: Problem, *attributes: Any, dtype: str = "float32", grid_dtype: str | None = None
) -> None:
    """Compare values, and that the result is of the caller's kind."""
    x, grid = arrays.make(problem.input, dtype), arrays.make(problem.grid, grid_dtype or dtype)
    result = cudakit.grid_sample(x, grid, *attributes)
    assert type(result) is type(x)
    assert result.dtype == x.dtype
    assert_close(arrays.back(result), reference.grid_sample(problem.input, problem.grid, *attributes), dtype)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_mode(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    problem = draw(rng, SIZES[n], OUT[n], align_corners=align_corners)
    check_values(arrays, problem, mode, padding_mode, align_corners)


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_every_dtype(
    arrays: Arrays, rng: np.random.Generator, dtype: str, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    problem = draw(rng, SIZES[n], OUT[n], dtype=dtype, align_corners=align_corners)
    check_values(arrays, problem, mode, padding_mode, align_corners, dtype=dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_float32_grid_beside_half_data(arrays: Arrays, rng: np.random.Generator, dtype: str, mode: str) -> None:
    problem = draw(rng, (5, 7), (4, 6), dtype=dtype, grid_dtype="float32")
    check_values(arrays, problem, mode, dtype=dtype, grid_dtype="float32")


@pytest.mark.parametrize("attributes", COMBINATIONS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1), (2, 1), (1, 13), (1, 2, 1), (2, 2, 2)])
def test_sizes_smaller_than_the_footprint(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], attributes: tuple[str, str, bool]
) -> None:
    check_values(arrays, draw(rng, sizes, OUT[len(sizes)], align_corners=attributes[2]), *attributes)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("batch", "channels"), [(0, 3), (3, 0), (0, 0), (1, 1), (3, 1), (3, 2), (1, 4), (1, 5), (2, 8), (3, 17), (1, 64)]
)
def test_batches_and_channels(arrays: Arrays, rng: np.random.Generator, batch: int, channels: int, mode: str) -> None:
    check_values(arrays, draw(rng, (5, 7), (3, 11), batch=batch, channels=channels), mode)


@pytest.mark.parametrize("out", [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 2)])
def test_empty_outputs(arrays: Arrays, rng: np.random.Generator, out: tuple[int, ...]) -> None:
    check_values(arrays, draw(rng, SIZES[len(out)], out))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 33])
def test_every_layout(arrays: Arrays, rng: np.random.Generator, channels: int, layout: str, dtype: str) -> None:
    if arrays.device == "cuda" and dtype == "bfloat16":
        pytest.skip("the layouts are made by NumPy's and CuPy's own functions")
    problem = draw(rng, (5, 7), (4, 6), channels=channels, dtype=dtype)
    x, grid = (LAYOUTS[layout](arrays.xp, arrays.make(values, dtype)) for values in problem[:2])
    expected = reference.grid_sample(arrays.back(x), arrays.back(grid))
    assert_close(arrays.back(cudakit.grid_sample(x, grid)), expected, dtype)


@pytest.mark.parametrize(("n", "mode", "channels"), CHANNELS_LAST)
def test_channels_last(arrays: Arrays, rng: np.random.Generator, n: int, mode: str, channels: int) -> None:
    x, grid, _ = draw(rng, SIZES[n], OUT[n], channels=channels)
    x_last = arrays.make(np.moveaxis(x, 1, -1))
    result = cudakit.grid_sample(x_last, arrays.make(grid), mode, data_format="channels_last")
    assert_close(arrays.back(result), np.moveaxis(reference.grid_sample(x, grid, mode), 1, -1), "float32")


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
    band = near_knot(grid, sizes, False).any(axis=-1)[:, None]
    result = arrays.back(cudakit.grid_sample(arrays.make(x), arrays.make(grid), mode))
    expected = reference.grid_sample(x, grid, mode)
    # Coordinates are that much less exact than in a small image.
    assert_close(result, expected, "float32", scale=max(sizes) / 8, band=band, band_share=0.02)


def test_arguments_have_names_and_defaults(arrays: Arrays, rng: np.random.Generator) -> None:
    x, grid = (arrays.make(values) for values in draw(rng, (5, 7), (4, 6))[:2])
    bare = cudakit.grid_sample(x, grid)
    named = cudakit.grid_sample(
        input=x, grid=grid, mode="bilinear", padding_mode="zeros", align_corners=False, data_format="channels_first"
    )
    assert (arrays.back(bare) == arrays.back(named)).all()


def test_arguments_are_not_written(arrays: Arrays, rng: np.random.Generator) -> None:
    problem = draw(rng, (5, 7), (4, 6))
    x, grid = arrays.make(problem.input), arrays.make(problem.grid)
    cudakit.grid_sample(x, grid)
    assert (arrays.back(x) == problem.input).all()
    assert (arrays.back(grid) == problem.grid).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", [(5, 7), (1, 4), (1, 1), (3, 5, 4), (2, 1, 1), (41, 97)])
def test_affine_grid(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], dtype: str, align_corners: bool
) -> None:
    n, size = len(sizes), (3, 2, *sizes)
    values = rounded(rng.normal(size=(3, n, n + 1)), dtype)
    theta = arrays.make(values, dtype)
    grid = cudakit.affine_grid(theta, size, align_corners)
    assert type(grid) is type(theta)
    assert grid.dtype == theta.dtype
    assert_close(arrays.back(grid), reference.affine_grid(values, size, align_corners), dtype)


def test_affine_grid_of_an_empty_batch(arrays: Arrays) -> None:
    assert cudakit.affine_grid(arrays.make(np.zeros((0, 2, 3))), (0, 3, 4, 5)).shape == (0, 4, 5, 2)


def test_affine_grid_of_a_strided_theta(arrays: Arrays, rng: np.random.Generator) -> None:
    theta = arrays.make(rng.normal(size=(3, 2, 2))).transpose(2, 1, 0)
    expected = reference.affine_grid(arrays.back(theta), (2, 1, 4, 5))
    assert_close(arrays.back(cudakit.affine_grid(theta, [2, 1, 4, 5])), expected, "float32")


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
    check_values(arrays, problem, *attributes)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(5, 7), (1, 6), (3, 4, 5)])
def test_the_identity_grid_returns_the_input(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], mode: str, align_corners: bool
) -> None:
    n, values = len(sizes), rounded(rng.normal(size=(2, 3, *sizes)), "float32")
    theta = arrays.make(np.broadcast_to(np.eye(n, n + 1), (2, n, n + 1)))
    grid = cudakit.affine_grid(theta, values.shape, align_corners)
    result = cudakit.grid_sample(arrays.make(values), grid, mode, "zeros", align_corners)
    assert_close(arrays.back(result), values, "float32")


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
def test_values_are_linear_in_the_input(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    x, grid, _ = draw(rng, SIZES[n], OUT[n], dtype="float64", align_corners=align_corners)
    y = rng.normal(size=x.shape)

    def sample(values: Any) -> Any:
        made = (arrays.make(array, "float64") for array in (values, grid))
        return arrays.back(cudakit.grid_sample(*made, mode, padding_mode, align_corners))

    assert_close(sample(2 * x - 3 * y), 2 * sample(x) - 3 * sample(y), "float64")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_constant_image_stays_constant(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    grid = rng.uniform(-9, 9, size=(1, *OUT[n], n))
    x = np.full((1, 3, *SIZES[n]), 2.5)
    result = cudakit.grid_sample(arrays.make(x), arrays.make(grid), mode, padding_mode, align_corners)
    assert_close(arrays.back(result), np.full((1, 3, *OUT[n]), 2.5), "float32")


@given(seed=st.integers(0, 2**32 - 1), reach=st.sampled_from([1.0, 3.0, 1e4]))
def test_border_padding_never_leaves_the_range_of_the_input(arrays: Arrays, seed: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    x, grid = rng.uniform(-1, 1, size=(2, 3, 4, 5)), rng.uniform(-reach, reach, size=(2, 6, 7, 2))
    result = arrays.back(cudakit.grid_sample(arrays.make(x), arrays.make(grid), "bilinear", "border"))
    assert np.abs(result).max() <= np.abs(x).max() * (1 + 1e-6)
