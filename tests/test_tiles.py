"""Products of split numbers: against the oracle, of what cannot be split, and where no unit multiplies them.

Everything runs on instructions that stand in for the units, and on the units themselves where the processor has them.
"""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import compiler, cpuinfo, launch
from cudakit.deformable import conv_host, conv_host_plan, conv_host_splitting

from .conftest import Arrays
from .conftest import forget as forget_plans
from .deformable_problems import Geometry, call, check, draw
from .tolerances import TOLERANCES

GEOMETRIES = [
    pytest.param(Geometry((13, 11), (3, 3), padding=1, channels=32, out_channels=32), id="whole tiles"),
    pytest.param(Geometry((13, 11), (3, 2), padding=1, channels=5, out_channels=3), id="parts of tiles"),
    pytest.param(Geometry((13, 11), (3, 3), offset_groups=3, groups=2, channels=12, out_channels=70), id="groups"),
    pytest.param(Geometry((9, 7), (1, 1), offset_groups=2, groups=32, channels=64, out_channels=32), id="many groups"),
    pytest.param(Geometry((7, 7), (3, 3), channels=330, out_channels=40, batch=1), id="chunks of channels"),
    pytest.param(Geometry((200,), (11,), channels=37, out_channels=20), id="1-D"),
    pytest.param(Geometry((5, 6, 7), (2, 3, 2), channels=10, groups=2, out_channels=36), id="3-D"),
]
FINDERS = {"tiles": "has_amx", "dots": "has_avx512_bf16"}
HALF = "float16", "float32"  # of data and of coordinates
OPERATORS = pytest.mark.parametrize("operator", ["deform_conv", "deform_conv_backward"])


def forget() -> None:
    """Make every operator plan anew, for other kernels."""
    forget_plans()
    launch.lazy_kernel.cache_clear()
    compiler.fingerprint.cache_clear()


def want(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """Find one of the units, and find it worth it whatever the size."""
    for name, function in FINDERS.items():
        monkeypatch.setattr(cpuinfo, function, lambda found=name == unit: found)
    for name in ("AMX", "ROUNDED_AMX", "ROUNDED_AVX512_BF16"):
        table = getattr(conv_host_splitting, name)
        monkeypatch.setattr(conv_host_splitting, name, {dtype: anyway(parts) for dtype, parts in table.items()})


def anyway(parts: conv_host_splitting.Splitting) -> conv_host_splitting.Splitting:
    return parts._replace(least_outputs=0, least_depth=0, least_pixels=0)


def use(request: pytest.FixtureRequest, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiply by a unit, whatever the size."""
    unit, *emulated = request.param.split()
    if arrays.device != "cpu":
        pytest.skip("a GPU has cuBLAS")
    if emulated:
        monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DEMULATE_UNITS", "-O1"))  # need not be fast
    elif not getattr(cpuinfo, FINDERS[unit])():
        pytest.skip("the processor has none")
    want(monkeypatch, unit)
    forget()
    yield
    forget()


tiles = pytest.fixture(params=["tiles", "tiles emulated"], name="tiles")(use)
unit = pytest.fixture(params=["tiles", "tiles emulated", "dots", "dots emulated"], name="unit")(use)


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_float16(arrays: Arrays, rng: np.random.Generator, tiles: None, geometry: Geometry, operator: str) -> None:
    check(arrays, operator, draw(rng, geometry, "float16", "float32").on(arrays, "float16", "float32"), *HALF)


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES[1:3])
def test_bfloat16(arrays: Arrays, rng: np.random.Generator, tiles: None, geometry: Geometry, operator: str) -> None:
    check(arrays, operator, draw(rng, geometry, "bfloat16").on(arrays, "bfloat16"), "bfloat16")


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rounded_bfloat16(
    arrays: Arrays, rng: np.random.Generator, unit: None, geometry: Geometry, operator: str
) -> None:
    """Columns are rounded, as on a GPU, if that is allowed, and are not otherwise.

    Gradients of small groups take vectors of channels, which round nothing.
    """
    problem = draw(rng, geometry, "bfloat16").on(arrays, "bfloat16")
    rtol, atol = TOLERANCES["bfloat16"]
    check(arrays, operator, problem, "bfloat16", scale=2 * rtol / atol, allow_tf32=True)
    some, exact = (call(operator, problem, allow_tf32=allowed) for allowed in (True, False))
    name = "output" if operator == "deform_conv" else "weight"
    small = geometry.groups > 1 and geometry.out_channels // geometry.groups < 20
    rounds = operator == "deform_conv" or not small
    assert (arrays.back(some[name]) != arrays.back(exact[name])).any() == rounds


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES[1:3])
def test_rounded_float32(
    arrays: Arrays, rng: np.random.Generator, tiles: None, geometry: Geometry, operator: str
) -> None:
    problem = draw(rng, geometry).on(arrays)
    check(arrays, operator, problem, scale=2.0**-13 / 1e-5, allow_tf32=True)
    some, exact = (call(operator, problem, allow_tf32=allowed) for allowed in (True, False))
    name = "output" if operator == "deform_conv" else "weight"
    assert (arrays.back(some[name]) != arrays.back(exact[name])).any()


@pytest.mark.parametrize(
    ("dtype", "rounds", "precision"),
    [("bfloat16", False, 2.0**-6), ("bfloat16", True, 2.0**-6), ("float32", False, 1e-5)],
)
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1e38, 1e-30, 1e-38], ids=str)
@pytest.mark.parametrize("place", ["input", "weight", "output"])
def test_numbers_that_units_cannot_hold(
    arrays: Arrays,
    rng: np.random.Generator,
    unit: None,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: float,
    dtype: str,
    rounds: bool,
    precision: float,
) -> None:
    """Results are those of a processor without them: one number is spoilt, or all are tiny."""
    geometry = Geometry((13, 11), (3, 3), padding=1, channels=32, out_channels=32, biased=False)
    problem = draw(rng, geometry, dtype)
    spoilt = getattr(problem, place) * (number if abs(number) < 1 else 1)
    if not abs(number) < 1:
        spoilt[0, 3, 1, 2] = number
    problem = problem._replace(**{place: spoilt}).on(arrays, dtype)
    operator = "deform_conv_backward" if place == "output" else "deform_conv"
    results = call(operator, problem, allow_tf32=rounds)
    monkeypatch.setattr(conv_host, "choose_splitting", lambda *_: conv_host_splitting.WHOLE)
    forget()
    for name, values in call(operator, problem).items():
        if values is not None:
            expected = arrays.back(values)
            typical = np.median(np.abs(expected[np.isfinite(expected)]))
            actual = arrays.back(results[name])
            np.testing.assert_allclose(actual, expected, rtol=precision, atol=precision * typical)


@pytest.mark.parametrize("place", ["weight", "output"])
def test_tiny_numbers_of_one_channel(arrays: Arrays, rng: np.random.Generator, tiles: None, place: str) -> None:
    """Tiles would lose them beside ordinary ones of other channels."""
    problem = draw(rng, Geometry((13, 11), (3, 3), channels=32, out_channels=32, biased=False))
    shrunk = getattr(problem, place).copy()
    channel = (slice(None), 5) if place == "output" else 5
    shrunk[channel] = (shrunk[channel] * 1e-36).astype(np.float32)
    operator, name = ("deform_conv_backward", "weight") if place == "output" else ("deform_conv", "output")
    results = []
    for dtype in ("float32", "float64"):
        result = call(operator, problem._replace(**{place: shrunk}).on(arrays, dtype, dtype))[name]
        results.append(arrays.back(result)[5 if place == "output" else (slice(None), 5)])
    actual, expected = results
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.median(np.abs(expected)))


@pytest.mark.parametrize("largest", [1, 1e38], ids=["split", "a weight that units cannot hold"])
def test_many_threads_share_an_image(arrays: Arrays, rng: np.random.Generator, unit: None, largest: float) -> None:
    problem = draw(rng, Geometry((7, 7), (3, 3), padding=1, channels=32, out_channels=32, batch=1), "bfloat16")
    problem.weight[3, 2, 1, 1] = largest
    made, before, results = problem.on(arrays, "bfloat16"), cudakit.get_num_threads(), []
    try:
        for threads in (1, 16):
            cudakit.set_num_threads(threads)
            results.append(arrays.back(call("deform_conv", made, allow_tf32=True)["output"]))
    finally:
        cudakit.set_num_threads(before)
    np.testing.assert_allclose(*results, rtol=2.0**-6, atol=1e-2)


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_float32(arrays: Arrays, rng: np.random.Generator, tiles: None, geometry: Geometry, operator: str) -> None:
    """As exact as any other float32 product, unless it may be rounded."""
    check(arrays, operator, draw(rng, geometry).on(arrays))


def test_the_least_workspace_does_without(
    arrays: Arrays, rng: np.random.Generator, unit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = draw(rng, Geometry((13, 11), (3, 3), channels=320, out_channels=64), "bfloat16").on(arrays, "bfloat16")
    with pytest.raises(ValueError, match="workspace") as refused:
        call("deform_conv", problem, workspace=1)
    rtol, atol = TOLERANCES["bfloat16"]
    (least,) = re.findall(r"at least (\d+) bytes", str(refused.value))
    chosen = []
    choose = conv_host_plan.with_split

    def noted(*arguments: Any) -> conv_host.HostConvolution:
        found = choose(*arguments)
        chosen.append(found.split.array_parts)
        return found

    monkeypatch.setattr(conv_host_plan, "with_split", noted)
    for workspace in (int(least), None):
        check(arrays, "deform_conv", problem, "bfloat16", scale=2 * rtol / atol, workspace=workspace, allow_tf32=True)
    assert chosen == [0, 1]


@pytest.mark.parametrize(("unit", "macro"), [("tiles", "__AMX_BF16__"), ("dots", "__AVX512BF16__")])
def test_a_compiler_that_does_not_know_them(
    arrays: Arrays, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, unit: str, macro: str
) -> None:
    if arrays.device != "cpu":
        pytest.skip("a GPU has cuBLAS")
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, f"-U{macro}"))
    want(monkeypatch, unit)
    forget()
    try:
        problem = draw(rng, Geometry((13, 11), (3, 3), channels=32, out_channels=32), "bfloat16")
        for operator in ("deform_conv", "deform_conv_backward"):
            check(arrays, operator, problem.on(arrays, "bfloat16"), "bfloat16", allow_tf32=True)
    finally:
        forget()


@pytest.mark.parametrize(
    ("system", "flags", "answer", "available"),
    [
        ("Linux", "flags : fpu amx_tile amx_bf16", 0, True),
        ("Linux", "flags : fpu amx_tile amx_bf16", -1, False),
        ("Linux", "flags : fpu amx_tile", 0, False),
        ("Linux", "", 0, False),
        ("Darwin", "flags : fpu amx_tile amx_bf16", 0, False),
    ],
)
def test_whether_there_are_any(
    monkeypatch: pytest.MonkeyPatch, system: str, flags: str, answer: int, available: bool
) -> None:
    asked: list[Any] = []

    class Library:
        def __init__(self, name: None) -> None:
            pass

        def syscall(self, *arguments: int) -> int:
            asked.append(arguments)
            return answer

    monkeypatch.setattr(cpuinfo.platform, "system", lambda: system)
    monkeypatch.setattr(cpuinfo.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: f"processor : 0\n{flags}\n")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert cpuinfo.has_amx.__wrapped__() is available
    assert asked == ([(158, 0x1023, 18)] if system == "Linux" and "bf16" in flags else [])
