"""Columns that never exist in full: problems whose columns would not fit, and how much memory a call takes."""

import os
import subprocess
import sys

import numpy as np
import pytest

import cudakit

from .conftest import Arrays
from .tolerances import assert_close

# A peak of memory is a process's own, so each is measured in one. Samples lie all over a small image, whose padding
# makes the output large: 9 * 256 columns for each of 128 * 128 pixels are 150 MB an image.
MEASURE = """
import sys
import numpy as np
import cudakit

def memory(what):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))

backward, workspace, batch = (int(text) for text in sys.argv[1:])
options = {"workspace": workspace} if workspace else {}
rng = np.random.default_rng(0)

def run(batch, side):
    x, weight = rng.random((batch, 256, 8, 8), np.float32), rng.random((16, 256, 3, 3), np.float32)
    places = np.mgrid[:side, :side].astype(np.float32)
    offset = np.tile(rng.uniform(0, 8, (2, side, side)).astype(np.float32) - places, (batch, 9, 1, 1))
    arguments = (x, offset, weight, None, 1, (side - 6) // 2)
    grad = np.ones((batch, 16, side, side), np.float32)
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")  # the peak is forgotten
    before = memory("VmRSS")
    results = cudakit.deform_conv2d_backward(grad, *arguments, **options) if backward else [
        cudakit.deform_conv2d(*arguments, **options)
    ]
    return memory("VmHWM") - before - sum(result.nbytes for result in results if result is not None)

run(1, 16)  # compiles, and lets the threads of a matrix library take their buffers
print(run(batch, 128))
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a process learns its peak of memory from /proc")
MEGABYTE = 1 << 20
ALLOWANCE = 24 * MEGABYTE  # stacks, buffers of the matrix library, the allocator's rounding


def extra_memory(backward: bool, workspace: int, batch: int) -> int:
    """Return the bytes that a call takes beside its results."""
    command = [sys.executable, "-c", MEASURE, str(int(backward)), str(workspace), str(batch)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@ON_LINUX
@pytest.mark.parametrize("backward", [False, True])
def test_memory_stays_below_the_workspace(backward: bool) -> None:
    workspace = 16 * MEGABYTE
    assert extra_memory(backward, workspace, 2) < workspace + ALLOWANCE


@ON_LINUX
@pytest.mark.parametrize("backward", [False, True])
def test_memory_does_not_grow_with_the_batch(backward: bool) -> None:
    one, several = (extra_memory(backward, 0, batch) for batch in (1, 4))
    assert several < one + ALLOWANCE


def test_columns_beyond_32_bits(arrays: Arrays) -> None:
    """More than 2**31 columns: 8192 channels of a single pixel, which 2**18 + 1 output pixels look at."""
    channels, reach = 8192, 1 << 17
    rng = np.random.default_rng(3)
    x, weight = rng.uniform(-1, 1, (1, channels, 1)), rng.uniform(-1, 1, (2, channels, 1))
    distance = rng.uniform(-1.4, 1.4, (1, 1, 2 * reach + 1))
    regular = np.arange(-reach, reach + 1.0)
    made = [arrays.make(values) for values in (x, distance - regular, weight)]
    output = cudakit.deform_conv1d(*made, padding=reach, workspace=1 << 26)
    distance = arrays.back(made[1]) + regular  # as float32 holds it
    expected = np.maximum(0, 1 - np.abs(distance)) * np.einsum("ncx,ocx->no", x, weight)[..., None]
    assert channels * regular.size > 2**31
    assert_close(arrays.back(output), expected, "float32", scale=8)
