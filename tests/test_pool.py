"""The host's threads: results that do not depend on them, several callers, forks, and where workers run."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import cudakit

from .processes import python

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0

# Calls by a caller who is bound to one core, before there are workers and after, and to all of them.
BOUND = """
import os
import numpy as np
import cudakit
rng = np.random.default_rng(4)
x = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
grid = rng.uniform(-1, 1, (2, 64, 64, 2)).astype(np.float32)
cudakit.set_num_threads(1)
expected = cudakit.grid_sample(x, grid)
cudakit.set_num_threads(4)
every = os.sched_getaffinity(0)
masks, same = [{min(every)}, every, {max(every)}], []
for mask in masks:
    os.sched_setaffinity(0, mask)
    same.append((cudakit.grid_sample(x, grid) == expected).all())
print(*same)
print(len(os.sched_getaffinity(0)))
"""

# How many of the caller's cores the worker that comes for its call may not use.
AWAY = """
import os
import numpy as np
import cudakit
x, grid = np.ones((2, 3, 64, 64), np.float32), np.zeros((2, 70, 70, 2), np.float32)
cudakit.set_num_threads(2)
before = set(os.listdir("/proc/self/task"))
cudakit.grid_sample(x, grid)
(worker,) = set(os.listdir("/proc/self/task")) - before
print(len(os.sched_getaffinity(0) - os.sched_getaffinity(int(worker))))
"""

# Calls on several threads before a fork, and again in the child, which inherits none of them.
FORK = """
import multiprocessing, os, sys
import numpy as np
import cudakit
cudakit.set_num_threads(4)
rng = np.random.default_rng(4)
x = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
grid = rng.uniform(-1, 1, (2, 64, 64, 2)).astype(np.float32)
expected = cudakit.grid_sample(x, grid)
def right(_=None):
    return all((cudakit.grid_sample(x, grid) == expected).all() for _ in range(20))
child = os.fork()
if child == 0:
    grandchild = os.fork()
    fine = right() and (grandchild == 0 or os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0)
    os._exit(not fine)
print(right(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(right, range(4)))
"""


@pytest.fixture
def problem() -> Iterator[tuple[Any, Any]]:
    """Image and grid that are worth several threads; their number is put back after."""
    before = cudakit.get_num_threads()
    rng = np.random.default_rng(5)
    yield rng.normal(size=(2, 3, 64, 64)).astype(np.float32), rng.uniform(-1, 1, (2, 70, 70, 2)).astype(np.float32)
    cudakit.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("channels", [3, 32])
def test_the_number_of_threads_changes_no_bit(problem: tuple[Any, Any], channels: int, threads: int) -> None:
    x, grid = np.resize(problem[0], (2, channels, 64, 64)), problem[1]
    results = []
    for number in (1, threads):
        cudakit.set_num_threads(number)
        results.append(cudakit.grid_sample(x, grid))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (7, 7), (5, 19), (8, 12), (14, 14), (28, 28)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_convolution_is_cut_for_the_threads_and_changes_no_bit(
    problem: tuple[Any, Any], batch: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(batch, 48, *size)).astype(np.float32)
    offset = rng.normal(size=(batch, 18, *size)).astype(np.float32)
    weight, bias = rng.normal(size=(40, 48, 3, 3)).astype(np.float32), rng.normal(size=40).astype(np.float32)
    results = []
    for number in (1, 2, 3, 16):
        cudakit.set_num_threads(number)
        results.append(cudakit.deform_conv2d(x, offset, weight, bias, padding=1))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("threads", [1, 4])
def test_gradients_come_out_alike_on_every_run(problem: tuple[Any, Any], threads: int) -> None:
    x, grid = problem
    cudakit.set_num_threads(threads)
    y = cudakit.grid_sample(x, grid)
    first = cudakit.grid_sample_backward(y, x, grid)
    for _ in range(5):
        np.testing.assert_array_equal(cudakit.grid_sample_backward(y, x, grid).input, first.input)
        np.testing.assert_array_equal(cudakit.grid_sample_backward(y, x, grid).grid, first.grid)


def test_several_python_threads_call_at_once(problem: tuple[Any, Any]) -> None:
    cudakit.set_num_threads(3)
    x, grid = problem
    grids = [grid * scale for scale in (0.25, 0.5, 0.75, 1.0)]
    expected = [cudakit.grid_sample(x, each) for each in grids]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: cudakit.grid_sample(x, grids[i % 4]), range(200)))
    assert all((result == expected[i % 4]).all() for i, result in enumerate(results))


@pytest.mark.skipif(CORES == 0, reason="needs Linux")
def test_a_caller_may_be_bound_to_cores_before_and_after() -> None:
    assert python(BOUND) == ["True True True", "1"]


@pytest.mark.skipif(CORES < 2, reason="needs Linux and two cores")
def test_a_worker_keeps_away_from_the_callers_core() -> None:
    assert python(AWAY) == ["1"]


def test_a_forked_child_may_go_on_calling() -> None:
    assert python(FORK) == ["True 0", "True True True True"]
