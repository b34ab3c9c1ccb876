"""The block of temporary memory that a CPU keeps between calls."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import workspace
from cudakit.array import CPU, Memory


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Begin with no block, and leave what was kept as it was."""
    kept: list[Any] = []
    monkeypatch.setattr(workspace, "_kept", kept)
    yield kept


def borrow(size: int) -> Memory:
    """Borrow a block for a CPU."""
    return workspace.borrow(size, CPU, 0, None)


def test_a_block_is_used_again() -> None:
    first = borrow(100_000)
    assert first.pointer % workspace.ALIGNMENT == 0
    workspace.give_back(first, CPU)
    for size in (100_000, 1):
        again = borrow(size)
        assert again.owner is first.owner
        workspace.give_back(again, CPU)


def test_a_block_that_is_too_small_is_replaced(nothing_kept: list[Any]) -> None:
    small = borrow(1000)
    workspace.give_back(small, CPU)
    large = borrow(2000)
    assert large.owner.nbytes >= 2000
    assert large.pointer + 2000 <= large.owner.ctypes.data + large.owner.nbytes
    assert nothing_kept == []
    workspace.give_back(large, CPU)
    assert len(nothing_kept) == 1
    assert nothing_kept[0] is large.owner


def test_two_calls_at_a_time_have_blocks_of_their_own(nothing_kept: list[Any]) -> None:
    workspace.give_back(borrow(1000), CPU)
    first, second = borrow(1000), borrow(1000)
    assert first.owner is not second.owner
    workspace.give_back(first, CPU)
    workspace.give_back(second, CPU)
    assert len(nothing_kept) == 1


def test_large_blocks_are_freed(nothing_kept: list[Any]) -> None:
    small = borrow(1000)
    workspace.give_back(small, CPU)
    workspace.give_back(borrow(workspace.KEPT_BYTES), CPU)
    assert len(nothing_kept) == 1
    assert nothing_kept[0] is small.owner


def operators() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls that take temporary memory of every kind."""
    rng = np.random.default_rng(0)

    def normal(dtype: str, *shape: int) -> Any:
        return rng.normal(size=shape).astype(dtype)

    for dtype in ("float32", "float16"):
        x, weight = normal(dtype, 2, 32, 9, 11), normal(dtype, 6, 16, 3, 3)
        grids = [rng.uniform(-1.2, 1.2, size=(2, 8, width, 2)).astype("float32") for width in (10, 15)]
        options = {"padding": 1, "mask": normal("float32", 2, 18, 9, 11)}
        deform = (x, normal("float32", 2, 36, 9, 11), weight)
        yield f"grid_sample {dtype}", partial(cudakit.grid_sample, x, grids[1])
        yield (
            f"grid_sample_backward {dtype}",
            partial(cudakit.grid_sample_backward, normal(dtype, 2, 32, 8, 10), x, grids[0]),
        )
        yield f"deform_conv2d {dtype}", partial(cudakit.deform_conv2d, *deform, **options)
        yield (
            f"deform_conv2d_backward {dtype}",
            partial(cudakit.deform_conv2d_backward, normal(dtype, 2, 6, 9, 11), *deform, **options),
        )


def check_equal(results: Any, others: Any) -> None:
    """Compare the results of an operator, one array or several."""
    for one, other in zip(*[x if isinstance(x, tuple) else (x,) for x in (results, others)], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in operators()])
def test_what_a_block_held_does_not_matter(call: Callable[[], Any], nothing_kept: list[Any]) -> None:
    expected = call()
    (block,) = nothing_kept
    block.fill(0xFF)  # as numbers: NaNs
    check_equal(call(), expected)
    assert nothing_kept[0] is block


def test_threads_that_call_at_the_same_time() -> None:
    calls = dict(operators())
    expected = {name: call() for name, call in calls.items()}
    found: list[tuple[str, Any]] = []

    def work() -> None:
        found.extend((name, call()) for _ in range(5) for name, call in calls.items())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 * len(calls)
    for name, results in found:
        check_equal(results, expected[name])
