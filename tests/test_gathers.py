"""Taps gathered by one instruction, and loaded sample by sample: every way on every processor, to the same bits."""

import platform
import subprocess

import numpy as np
import pytest

import cudakit
from cudakit import compiler
from cudakit.array import CPU, Spec, contiguous_strides
from cudakit.launch import Launch
from cudakit.op import OPS

from .conftest import Arrays
from .test_tiles import forget
from .tolerances import Floats

# The last as a processor with AVX2 alone does it.
WAYS = [("-DGATHERS=0",), ("-DGATHERS=1",), ("-DGATHERS=2",)]
if platform.machine() in ("x86_64", "AMD64"):
    WAYS.append(("-DGATHERS=0", "-mno-avx512f"))

# What makes a row of taps one word.
CASES = [
    pytest.param("float32", "bilinear", 3, "channels_first", (19, 37), "zeros", id="two taps"),
    pytest.param("float32", "bilinear", 3, "channels_first", (19, 37), "reflection", id="two taps reflected"),
    pytest.param("float32", "bilinear", 1, "channels_first", (19, 37), "reflection", id="two taps of a single plane"),
    pytest.param("float16", "bilinear", 3, "channels_first", (19, 37), "zeros", id="two halves"),
    pytest.param("float32", "nearest", 1, "channels_first", (19, 37), "reflection", id="one tap"),
    pytest.param("float64", "nearest", 1, "channels_first", (19, 37), "zeros", id="one double"),
    pytest.param("bfloat16", "bicubic", 3, "channels_first", (19, 37), "zeros", id="four halves"),
    pytest.param("bfloat16", "bicubic", 3, "channels_first", (19, 37), "reflection", id="four halves reflected"),
    pytest.param("float32", "bilinear", 1, "channels_last", (19, 37), "zeros", id="the only channel"),
    pytest.param("float32", "nearest", 2, "channels_last", (19, 37), "reflection", id="two channels"),
    pytest.param("bfloat16", "bilinear", 2, "channels_last", (19, 37), "zeros", id="two taps of two channels"),
    pytest.param("float32", "bilinear", 2, "channels_first", (7, 9, 11), "reflection", id="a volume"),
    pytest.param("float32", "bilinear", 2, "channels_first", (50,), "zeros", id="a line"),
]


@pytest.mark.parametrize(("dtype", "mode", "channels", "data_format", "sizes", "padding_mode"), CASES)
def test_every_way(
    arrays: Arrays,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    mode: str,
    channels: int,
    data_format: str,
    sizes: tuple[int, ...],
    padding_mode: str,
) -> None:
    if arrays.device != "cpu":
        pytest.skip("a GPU gathers by itself")
    shape = (2, *sizes, channels) if data_format == "channels_last" else (2, channels, *sizes)
    x, grad_output = (arrays.make(rng.normal(size=shape), dtype) for _ in range(2))
    grid = arrays.make(rng.uniform(-1.1, 1.1, size=(2, *sizes, len(sizes))), dtype)
    results: list[list[Floats]] = []
    flags = compiler.FLAGS
    for way in WAYS:
        monkeypatch.setattr(compiler, "FLAGS", (*flags, *way))
        forget()
        values = cudakit.grid_sample(x, grid, mode, padding_mode, data_format=data_format)
        gradients = cudakit.grid_sample_backward(grad_output, x, grid, mode, padding_mode, data_format=data_format)
        results.append([arrays.back(result) for result in (values, *gradients)])
    monkeypatch.undo()
    forget()
    for scattered, *gathered in zip(*results, strict=True):
        for found in gathered:
            np.testing.assert_array_equal(found, scattered)


def run_compiler(text: str, *options: str) -> str:
    """Return what the host's compiler prints."""
    command = [*compiler.command(), *options, "-o-", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def test_gcc_gathers_on_processors_that_it_does_not_know() -> None:
    # GCC 12 takes Emerald Rapids for a Cooper Lake with tile registers, whose timings are anybody's.
    unknown = ("-march=cooperlake", "-mtune=generic", "-mamx-tile")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("AMX is x86's")
    version = run_compiler("__clang__ __GNUC__", "-x", "c++", "-E", "-P").split()
    if version[0] != "__clang__" or int(version[1]) < 11:
        pytest.skip("Clang compares costs of its own; earlier GCCs know no AMX")
    shapes = (2, 1, 28, 28), (2, 28, 28, 2)
    specs = tuple([Spec(shape, contiguous_strides(shape), "float32") for shape in shapes])
    op = OPS["grid_sample"]
    launch = op.plan(specs, op.options(("bilinear", "zeros", False, "channels_first")), CPU).steps[0].launch
    assert isinstance(launch, Launch)
    options = [option for option in compiler.flags() if option not in ("-march=native", "-shared")]
    assert run_compiler(launch.kernel.text, *options, *unknown, "-S").count("vpgatherdq") >= 4
