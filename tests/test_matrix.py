"""One body for every framework, operator, dtype and layout of memory.

The bits are those of the NumPy road; kind, device and dtype those of the caller; the arguments are read where they lie
and stay what they were.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cudakit.cli.matrix import BRIDGES, OPERATORS, arguments, bits, call
from cudakit.plan import Plan

from .conftest import CPU_FRAMEWORKS, require

# Frameworks that tell where an array lies.
ADDRESSES = {
    "numpy": lambda x: x.__array_interface__["data"][0],
    "torch": lambda x: x.data_ptr(),
    "jax": lambda x: x.unsafe_buffer_pointer(),
    "paddle": lambda x: x.data_ptr(),
}
STRIDED = ("numpy", "torch", "array_api_strict")  # that have arrays which are not contiguous


@pytest.fixture
def pointers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the addresses that kernels get, those of arguments and results."""
    seen: list[int] = []
    run = Plan.run

    def watched(plan: Plan, given: Sequence[int], *others: Any) -> None:
        seen.extend(given)
        run(plan, given, *others)

    monkeypatch.setattr(Plan, "run", watched)
    return seen


def spread(framework: str, array: np.ndarray) -> Any:
    """Return an array with every second element of its last axis."""
    wide = np.repeat(array, 2, axis=-1)
    wide[..., 1::2] = np.nan
    return BRIDGES[framework].make(wide)[..., ::2]


def device(x: Any) -> str:
    """Return the device that a framework says an array is on."""
    return str(getattr(x, "place", None) or getattr(x, "device", "cpu"))


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", BRIDGES["numpy"].dtypes)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_cell(framework: str, operator: str, dtype: str, layout: str, pointers: list[int]) -> None:
    require(framework)
    bridge = BRIDGES[framework]
    if dtype not in bridge.dtypes:
        pytest.skip("the framework lacks this dtype")
    if layout == "strided" and framework not in STRIDED:
        pytest.skip("the framework has no views with strides")
    arrays = arguments(operator, dtype)
    own, reference = (
        {name: spread(kind, x) if layout == "strided" else BRIDGES[kind].make(x) for name, x in arrays.items()}
        for kind in (framework, "numpy")
    )
    expected = call(operator, reference)
    pointers.clear()
    results = call(operator, own)
    for name, x in own.items():
        assert bits(x) == arrays[name].tobytes(), f"{name} was written to"
    first = next(iter(own.values()))
    for mine, theirs in zip(results, expected, strict=True):
        assert type(mine) is type(first)
        assert (mine.dtype, device(mine)) == (first.dtype, device(first))
        assert bits(mine) == theirs.tobytes()
    if framework in ADDRESSES and layout == "contiguous":
        address = ADDRESSES[framework]
        assert {address(x) for x in (*own.values(), *results)} <= set(pointers), "something was copied"


def test_as_info_tries_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cudakit.cli.matrix", "numpy"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    cells = [(operator, dtype) for operator in OPERATORS for dtype in BRIDGES["numpy"].dtypes]
    assert [(operator, dtype) for operator, dtype, _ in found] == cells
    assert {problem for *_, problem in found} == {""}
