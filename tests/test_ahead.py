"""Batches of images that caches hold one by one: how much of the next is asked for, and that it changes nothing."""

import numpy as np
import pytest

import cudakit
from cudakit.cpuinfo import second_level_cache_bytes
from cudakit.layout import Image, packed
from cudakit.sampling import grid_ahead

from .conftest import Arrays

SIDE = 28
PLANES = packed((64, 3, 16, 32), "float32", channels_last=False)  # an image is 96 lines


@pytest.mark.parametrize(
    ("x", "pixels", "tiles", "lines"),
    [
        pytest.param(PLANES, 512, 8, 12, id="planes"),
        pytest.param(PLANES, 512, 7, 14, id="tiles that do not divide them"),
        pytest.param(packed(PLANES.shape, "float32", channels_last=True), 512, 8, 12, id="interleaved"),
        pytest.param(packed(PLANES.shape, "bfloat16", channels_last=False), 512, 8, 6, id="halves"),
        pytest.param(PLANES._replace(strides=(4096, *PLANES.strides[1:])), 512, 8, 12, id="part of the channels"),
        pytest.param(PLANES._replace(strides=(3072, 1024, 64, 1)), 512, 8, 0, id="part of the columns"),
        pytest.param(PLANES._replace(shape=(2, 3, 16, 32)), 512, 8, 0, id="a batch that caches hold"),
        pytest.param(PLANES, 31, 1, 0, id="few pixels read"),
    ],
)
def test_how_much_of_the_next_image(
    monkeypatch: pytest.MonkeyPatch, x: Image, pixels: int, tiles: int, lines: int
) -> None:
    monkeypatch.setattr(grid_ahead, "second_level_cache_bytes", lambda: 20_000)
    assert grid_ahead.next_lines(x, pixels, tiles) == lines


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_images_are_sampled_as_each_alone(arrays: Arrays, rng: np.random.Generator, mode: str, last: bool) -> None:
    count = 2 * second_level_cache_bytes() // (4 * 3 * SIDE * SIDE) + 1
    shape = (count, SIDE, SIDE, 3) if last else (count, 3, SIDE, SIDE)
    x = rng.normal(size=shape).astype(np.float32)
    grid = rng.uniform(-1.2, 1.2, size=(count, SIDE, SIDE, 2)).astype(np.float32)
    options = {"mode": mode, "data_format": "channels_last" if last else "channels_first"}

    def results(images: slice) -> list[np.ndarray]:
        given = [arrays.make(array[images]) for array in (x, grid)]
        found = (cudakit.grid_sample(*given, **options), *cudakit.grid_sample_backward(given[0], *given, **options))
        return [arrays.back(array) for array in found]

    whole = results(slice(None))
    for i in (0, 1, count // 2, count - 1):
        for array, alone in zip(whole, results(slice(i, i + 1)), strict=True):
            np.testing.assert_allclose(array[i : i + 1], alone, rtol=1e-6, atol=1e-6)
