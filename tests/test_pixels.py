"""Images of a few channels on a CPU: pixels read as vectors, and rows of cubic taps; whoever the neighbours are."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

import cudakit

from .conftest import MODES, PADDING_MODES, Arrays
from .test_sampling_special import compare, special_grid
from .tolerances import Floats

ALL = [(mode, padding_mode) for mode in MODES for padding_mode in PADDING_MODES]
CHANNELS = (2, 3, 4)
NOTHING = 0  # PROT_NONE: what a page may be used for


def grid_with_edges(rng: np.random.Generator, samples: int) -> Floats:
    """Return positions of which some tiles lie inside and others across the edge."""
    inside = rng.uniform(-0.5, 0.5, size=(1, samples // 2, 1, 2))
    return np.concatenate([inside, rng.uniform(-1.5, 1.5, size=inside.shape)], axis=1)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("mode", "padding_mode"), ALL)
def test_special_coordinates(
    arrays: Arrays, rng: np.random.Generator, mode: str, padding_mode: str, channels: int
) -> None:
    x = rng.uniform(1, 2, size=(1, channels, 9, 12))
    grid = np.concatenate([special_grid("float32", 2), grid_with_edges(rng, 300)], axis=1)
    results = compare(arrays, x, grid, mode, padding_mode, False, last=True)
    assert all(np.isfinite(array).all() for array in results)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixels_across_the_edge_do_not_show(arrays: Arrays, mode: str, channels: int) -> None:
    x = np.full((1, channels, 8, 8), np.nan)
    x[:, :, :2, -2:] = 1.0
    corner = [(2 * 7.375 + 1) / 8 - 1, (2 * -0.375 + 1) / 8 - 1]
    results = compare(arrays, x, np.full((1, 1, 1, 2), corner), mode, "zeros", False, last=True)
    assert all(np.isfinite(array).all() for array in results)


# Bilinear positions are reflected only beside one that is outside, which rounds them.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("mode", "padding_mode"),
    [case for case in ALL if case[0] != "nearest" and case != ("bilinear", "reflection")],
)
@pytest.mark.parametrize("last", [False, True])
def test_neighbours_change_no_bit(
    arrays: Arrays, rng: np.random.Generator, last: bool, mode: str, padding_mode: str, dtype: str
) -> None:
    grid, order = grid_with_edges(rng, 256), rng.permutation(256)
    shape = (1, 9, 12, 3) if last else (1, 3, 9, 12)
    x, attributes = arrays.make(rng.normal(size=shape), dtype), (mode, padding_mode, False)
    data_format = "channels_last" if last else "channels_first"

    def run(grid: Floats) -> list[Floats]:
        """Return values and, where pixels are not read as vectors, gradients by the grid; samples first."""
        made = arrays.make(grid, dtype)
        values = cudakit.grid_sample(x, made, *attributes, data_format=data_format)
        if last:
            return [arrays.back(values).reshape(256, 3)]
        grads = cudakit.grid_sample_backward(values, x, made, *attributes, needs=("grid",))
        return [arrays.back(values).reshape(3, 256).T, arrays.back(grads.grid).reshape(256, 2)]

    for alone, mixed in zip(run(grid), run(grid[:, order]), strict=True):
        np.testing.assert_array_equal(alone[order], mixed)


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected by POSIX's mprotect")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_nothing_is_read_behind_an_image(rng: np.random.Generator, mode: str, channels: int) -> None:
    """The image ends where memory that must not be read begins: a read would end the process."""
    shape = (1, 9, 12, channels)
    size = 4 * int(np.prod(shape))
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, NOTHING) == 0
    x = np.frombuffer(pages, np.float32, size // 4, mmap.PAGESIZE - size).reshape(shape)
    grid = grid_with_edges(rng, 512).astype(np.float32)
    corner = np.ones((1, 64, 1, 2), np.float32)
    for positions in (grid, corner, np.concatenate([grid, corner], axis=1)):
        found = cudakit.grid_sample(x, positions, mode, "border", data_format="channels_last")
        expected = cudakit.grid_sample(x.copy(), positions, mode, "border", data_format="channels_last")
        np.testing.assert_array_equal(found, expected)
