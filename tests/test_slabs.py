"""The gradient of a single image, shared out among threads: slabs of it, or the channels of a line."""

import numpy as np
import pytest

import cudakit
from cudakit import reference
from cudakit.array import CPU
from cudakit.layout import packed
from cudakit.plan import Target
from cudakit.sampling.grid_form import shares_of

from .conftest import PADDING_MODES, Arrays
from .tolerances import assert_close, grid_away_from_knots, rounded

SHAPES = [
    pytest.param((1, 3, 17, 23), "channels_first", id="planes"),
    pytest.param((1, 3, 17, 23), "channels_last", id="interleaved"),
    pytest.param((1, 20, 11, 9), "channels_last", id="many channels"),
    pytest.param((1, 17, 11, 9), "channels_first", id="many planes"),
    pytest.param((1, 2, 1, 40), "channels_first", id="a row"),
    pytest.param((3, 1, 2, 40), "channels_last", id="two rows of three images"),
    pytest.param((1, 5, 7, 5, 6), "channels_last", id="a volume"),
    pytest.param((1, 5, 50), "channels_last", id="a line"),
]


@pytest.mark.parametrize(("shape", "data_format"), SHAPES)
@pytest.mark.parametrize(
    ("mode", "padding_mode"),
    [*(("bilinear", padding_mode) for padding_mode in PADDING_MODES), ("nearest", "zeros"), ("bicubic", "reflection")],
)
def test_threads_change_no_bit(
    arrays: Arrays,
    rng: np.random.Generator,
    threads: None,
    shape: tuple[int, ...],
    data_format: str,
    mode: str,
    padding_mode: str,
) -> None:
    sizes, out = shape[2:], (9, 31, 4)[: len(shape) - 2]
    x = rounded(rng.normal(size=shape), "float32")
    grad = rounded(rng.normal(size=(*shape[:2], *out)), "float32")
    grid = grid_away_from_knots(rng, (shape[0], *out, len(sizes)), sizes, False, "float32", reach=1.3)
    expected = reference.grid_sample_backward(grad, x, grid, mode, padding_mode)
    last = data_format == "channels_last"
    made = [arrays.make(np.moveaxis(a, 1, -1) if last else a) for a in (grad, x)]
    results = []
    for number in (1, 2, 5, 16):
        cudakit.set_num_threads(number)
        found = cudakit.grid_sample_backward(*made, arrays.make(grid), mode, padding_mode, data_format=data_format)
        by_input, by_grid = (arrays.back(gradient) for gradient in found)
        results.append((np.moveaxis(by_input, -1, 1) if last else by_input, by_grid))
        for actual, values, first in zip(results[-1], expected, results[0], strict=True):
            assert_close(actual, values, "float32")
            if len(sizes) > 1:
                np.testing.assert_array_equal(actual, first)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_places_far_outside_are_somebodys(
    arrays: Arrays, rng: np.random.Generator, threads: None, padding_mode: str
) -> None:
    x, grad = rng.normal(size=(1, 2, 12, 10)), rng.normal(size=(1, 2, 3, 40))
    grid = rng.uniform(-1, 1, (1, 3, 40, 2))
    grid.flat[::7] = np.resize([np.nan, np.inf, -np.inf, 1e30, -1e30, 2.7, -2.7], grid.flat[::7].shape)
    made = [arrays.make(a) for a in (grad, x, grid)]
    results = []
    for number in (1, 6):
        cudakit.set_num_threads(number)
        found = cudakit.grid_sample_backward(*made, "bilinear", padding_mode)
        results.append([arrays.back(gradient) for gradient in found])
        assert np.isfinite(results[-1][0]).all()
    for actual, first in zip(results[1], results[0], strict=True):
        np.testing.assert_array_equal(actual, first)


@pytest.mark.parametrize(
    ("batch", "rows", "threads", "shares"),
    [(1, 64, 1, 1), (1, 64, 4, 4), (2, 64, 4, 2), (8, 64, 4, 1), (3, 64, 2, 1), (1, 3, 16, 3), (5, 64, 16, 3)],
)
def test_how_many_slabs(batch: int, rows: int, threads: int, shares: int) -> None:
    image = packed((batch, 3, rows, 32), "float32", channels_last=False)
    assert shares_of(image, Target(CPU, threads)) == shares
