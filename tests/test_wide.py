"""64-bit index arithmetic: the same bits as 32-bit where both do, and right where only it can."""

import numpy as np
import pytest

import cudakit
from cudakit import layout, op, sampling_plan

from .conftest import Arrays


@pytest.mark.parametrize("channels", [3, 16])
def test_wide_arithmetic_gives_the_same_bits(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    image = rng.standard_normal((2, channels, 9, 11)).astype(np.float32)
    grid = rng.uniform(-1.3, 1.3, (2, 8, 7, 2)).astype(np.float32)

    def results() -> list[np.ndarray]:
        samples = cudakit.grid_sample(image, grid)
        return [samples, *cudakit.grid_sample_backward(samples, image, grid)]

    narrow = results()
    for module in (sampling_plan, layout):
        monkeypatch.setattr(module, "is_wide", lambda *_: True)
    op._recipes.clear()
    op._plan.cache_clear()
    try:
        for one, other in zip(narrow, results(), strict=True):
            np.testing.assert_array_equal(one, other)
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
