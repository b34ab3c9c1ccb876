"""64-bit index arithmetic: the same bits as 32-bit where both do, and right where only it can."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import launch, layout, op, rounding
from cudakit.deformable import column_plan
from cudakit.sampling import affine, grid_double_plan, grid_plan

from .conftest import Arrays
from .deformable_problems import GEOMETRIES, OPERATORS, call, draw
from .test_double_backward import SAMPLING


def sampled(channels: int) -> list[np.ndarray]:
    """Run the sampling operators."""
    rng = np.random.default_rng(7)
    image = rng.standard_normal((2, channels, 9, 11)).astype(np.float32)
    grid = rng.uniform(-1.3, 1.3, (2, 8, 7, 2)).astype(np.float32)
    samples = cudakit.grid_sample(image, grid)
    twice = op.OPS["grid_sample_double_backward"]((image, grid, samples, image, grid), *SAMPLING)
    theta = cudakit.affine_grid_backward(grid, (2, channels, 8, 7))
    moved = cudakit.affine_grid(theta, (2, channels, 8, 7))
    return [samples, *cudakit.grid_sample_backward(samples, image, grid), *twice, theta, moved]


def deformed(channels: int) -> list[np.ndarray]:
    """Run the deformable operators."""
    geometry = GEOMETRIES["2-D"]._replace(channels=channels)
    problem = draw(np.random.default_rng(7), geometry).on(Arrays("cpu"))
    return [result for operator in OPERATORS for result in call(operator, problem).values()]


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("results", [sampled, deformed])
def test_wide_arithmetic_gives_the_same_bits(
    results: Callable[[int], list[np.ndarray]], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = results(channels)
    for module in (grid_plan, layout, column_plan, affine, grid_double_plan, rounding):
        monkeypatch.setattr(module, "is_wide", lambda *_: True)
    preludes: list[Any] = []
    render = launch.render
    monkeypatch.setattr(launch, "render", lambda *a, **options: preludes.append(a[1]) or render(*a, **options))
    launch.lazy_kernel.cache_clear()
    op._recipes.clear()
    op._plan.cache_clear()
    try:
        for one, other in zip(narrow, results(channels), strict=True):
            np.testing.assert_array_equal(one, other)
        assert {prelude["INDEX"] for prelude in preludes} == {"long long"}
    finally:
        op._recipes.clear()
        op._plan.cache_clear()


def test_an_image_beyond_32_bits(device: str) -> None:
    """More than 2**31 pixels, of which only the pages around the samples are ever touched."""
    arrays = Arrays(device)
    side = 46342
    image = arrays.xp.zeros((1, 1, side, side), np.float16)
    image[0, 0, -1, -1] = 1
    image[0, 0, -2, 0] = 2
    row = 1 - 2 / (side - 1)
    grid = arrays.xp.asarray([[[[1.0, 1.0], [-1.0, row]]]], np.float32)
    samples = cudakit.grid_sample(image, grid, mode="nearest", align_corners=True)
    assert samples.ravel().tolist() == [1, 2]


@pytest.mark.parametrize("mode", cudakit.sampling.grid_form.MODES)
def test_a_row_whose_last_pixels_are_no_floats_is_sampled_to_its_end(mode: str, device: str) -> None:
    arrays = Arrays(device)
    size, x = 2**25 + 2**22, np.linspace(-0.999, 0.999, 77, dtype=np.float32)
    line, grid = arrays.xp.ones((1, 1, size), np.float32), arrays.make(x[None, :, None])
    samples = cudakit.grid_sample(line, grid, mode=mode)
    np.testing.assert_allclose(arrays.back(samples), 1, rtol=1e-6)
    gradient = cudakit.grid_sample_backward(samples, line, grid, mode=mode, needs=("input",)).input
    assert float(gradient.sum(dtype=np.float64)) == pytest.approx(77, rel=1e-6)


@pytest.mark.parametrize("mode", cudakit.sampling.grid_form.MODES)
@pytest.mark.parametrize("padding_mode", cudakit.sampling.grid_form.PADDING_MODES)
def test_a_line_beyond_32_bits_is_read_where_the_grid_looks(padding_mode: str, mode: str, device: str) -> None:
    arrays = Arrays(device)
    size, middle = 2**32, 3 * 2**30
    line = arrays.xp.zeros((1, 1, size), np.float16)
    line[..., middle - 256 : middle + 256] = 7
    samples = cudakit.grid_sample(line, arrays.make(np.full((1, 1, 1), 0.5)), mode, padding_mode)
    assert arrays.back(samples).item() == 7


def test_a_sample_a_hair_before_the_first_pixel_has_the_slope_there(device: str) -> None:
    arrays = Arrays(device)
    line, grid = arrays.make([[[1, 5, 2, 4, 3]]]), arrays.make([[[-0.8]] * 3])  # in float32, -3e-8 pixels
    gradient = cudakit.grid_sample_backward(arrays.make([[[1, 1, 1]]]), line, grid, needs=("grid",)).grid
    np.testing.assert_allclose(arrays.back(gradient), 2.5)  # half of the size, of the first pixel alone


SAFE = 2**31 - 2**22  # what a loop on a GPU may reach before its last step, over all threads that run at a time
PROCESSORS = 512  # more than any GPU has


@pytest.mark.parametrize(
    ("extents", "counts", "wide"),
    [
        ((), (SAFE,), False),
        ((), (SAFE + 1,), True),
        ((), (1, SAFE + 1), True),
        ([((SAFE,), (1,))], (), False),
        ([((SAFE + 1,), (1,))], (), True),
        ([((SAFE + 1,), (-1,))], (), True),
        ([((2, 3), (SAFE - 3, 1))], (1,), False),
        ([((2, 3), (SAFE - 2, 1))], (1,), True),
        ([((2, 3), (SAFE - 2, -1))], (1,), True),
        ([((5,), (1,)), ((2,), (SAFE,))], (), True),
        ([((1, 5), (2**40, 1))], (), False),
        ([((0, 5), (2**40, 1))], (0,), False),
    ],
)
def test_when_indices_take_64_bits(extents: list[layout.Extent], counts: tuple[int, ...], wide: bool) -> None:
    assert layout.is_wide(extents, *counts, 0) == wide


def test_the_last_step_of_a_loop_fits_32_bits() -> None:
    text = (Path(layout.__file__).parent / "cuda.py").read_text(encoding="utf-8")  # which needs CuPy to be imported
    (blocks,), (threads,) = (
        re.findall(rf"^{name} = (\d+)", text, re.M) for name in ("BLOCKS_PER_PROCESSOR", "THREADS")
    )
    last = SAFE - 1
    assert last + PROCESSORS * int(blocks) * int(threads) < 2**31
