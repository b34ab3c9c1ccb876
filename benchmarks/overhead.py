"""What a call costs besides the computing: Python around the kernel, the import, the first call."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np

import cudakit
from cudakit.host import HostKernel

from .cases import OURS, Family, Tiny
from .measure import Sample, burst, calm, check
from .peers import load, set_threads

ROOT = Path(__file__).resolve().parent.parent
LOOP = 100
REPEATS = 21
CHILDREN = 9
COLD_CHILDREN = 3
BARE, BEYOND = "bare kernels", "beyond the kernels"

IMPORT = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import cudakit
print(middle - start, perf_counter() - middle)
"""
FIRST_CALL = """
from time import perf_counter
import numpy as np
import cudakit
{setup}
start = perf_counter()
{call}
print(perf_counter() - start)
"""


def bare_launch(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the launches of compiled kernels inside a call, alone, with arguments that are packed already."""
    found: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is HostKernel.launch.__code__:
            found.append(dict(frame.f_locals))
            memory.extend(dict(caller.f_locals) for caller in _callers(frame))

    call()  # compiled, planned and cached from here on
    sys.setprofile(watch)
    try:
        result = call()
    finally:
        sys.setprofile(None)
    launches = [(launch.pop("self").launch, tuple(launch.values())) for launch in found]

    def again(_: Any = (result, memory)) -> None:  # the kernels write to results, and to what their callers hold
        for run, values in launches:
            run(*values)

    return again


def _callers(frame: FrameType) -> Iterator[FrameType]:
    caller = frame.f_back
    while caller is not None:
        yield caller
        caller = caller.f_back


def bridges(tiny: Tiny) -> dict[str, Callable[[], Any]]:
    """Return the tiny call on PyTorch's tensors, and on JAX's arrays under jit beside a jitted function without it."""
    names: dict[str, Any] = {"np": np, "cudakit": cudakit}
    exec(tiny.setup, names)
    arrays = {name: value for name, value in names.items() if isinstance(value, np.ndarray)}
    code = compile(tiny.call, "the tiny call", "eval")

    def run(given: dict[str, Any]) -> Any:
        return eval(code, {"cudakit": cudakit, **given})

    found = {"on NumPy's arrays": lambda: run(arrays)}
    torch, jax = load("torch"), load("jax")
    if torch is not None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        found["on PyTorch's tensors"] = lambda: run(tensors)
    if jax is not None:
        on_jax = {name: jax.numpy.asarray(array) for name, array in arrays.items()}
        jitted, other = jax.jit(run), jax.jit(lambda given: sum(array.ravel()[0] for array in given.values()))
        found["under jax.jit"] = lambda: jitted(on_jax).block_until_ready()
        found["another function under jax.jit"] = lambda: other(on_jax).block_until_ready()
    return found


def _loop(call: Callable[[], Any]) -> None:
    for _ in range(LOOP):
        call()


def call_overhead(family: Family) -> dict[str, float]:
    """Return the microseconds of a call on tiny arrays with one thread, for each side and for the bare kernels."""
    set_threads(1)
    row = family.tiny.row
    sides = check(family, row, [row.make()], 1).calls
    calls = {side: call for side, call in sides.items() if side not in family.floors}
    calls[BARE] = bare_launch(calls[OURS])
    calls |= {f"{OURS} {how}": call for how, call in bridges(family.tiny).items()}
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            samples[name] += burst(partial(_loop, call), 1, warm=True)
    found = {name: 1e6 / LOOP * median(calm(times)[0]) for name, times in samples.items()}
    return {**found, BEYOND: found[OURS] - found[BARE]}


def _child(code: str, cache: Path) -> list[float]:
    """Return the numbers that a fresh interpreter prints, in milliseconds; bytecode is kept, as in an installation."""
    environment = os.environ | {"CUDAKIT_CACHE_DIR": str(cache), "PYTHONPYCACHEPREFIX": str(cache.parent / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=cache.parent, env=environment, capture_output=True, text=True, check=True)
    return [1e3 * float(word) for word in done.stdout.split()]


def start_up(tiny: Tiny) -> dict[str, float]:
    """Return the milliseconds of the import beyond NumPy's, and of a first call on a cold and on a warm cache."""
    first_call = FIRST_CALL.format(setup=tiny.setup, call=tiny.call)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold = [_child(first_call, folder / str(number))[0] for number in range(COLD_CHILDREN)]
        warm = [_child(first_call, folder / "0")[0] for _ in range(CHILDREN)]
        imports = [_child(IMPORT, folder / "0") for _ in range(CHILDREN)]
    return {
        "import numpy": median(numpy for numpy, _ in imports),
        "import cudakit": median(ours for _, ours in imports),
        "first call, cold cache": median(cold),
        "first call, warm cache": median(warm),
    }
