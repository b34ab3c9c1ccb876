"""Results that are too large for the caches of a CPU, which go past them: the same bits as those of small ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import cpuinfo, launch, plan

from .conftest import Arrays, forget
from .deformable_problems import Geometry, Problem, call, draw
from .tolerances import rounded

SHAPES = [  # some with lines of the cache that are whole, some without
    pytest.param((2, 64, 8, 16), "channels_first", id="planes"),
    pytest.param((2, 40, 9, 13), "channels_first", id="planes that do not begin lines"),
    pytest.param((2, 70, 7, 16), "channels_last", id="channels last"),
    pytest.param((1, 36, 2, 6, 16), "channels_first", id="a volume"),
    pytest.param((3, 16, 64), "channels_last", id="lines"),
]


@pytest.fixture
def small(threads: None) -> Iterator[None]:
    """Begin and end without plans."""
    forget()
    yield
    forget()


def compare(monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[Any]]) -> None:
    """Compare what comes out of caches of no size with what comes out of the usual ones, on one thread and on three."""
    preludes: list[Any] = []
    render = launch.render
    monkeypatch.setattr(launch, "render", lambda *a, **options: preludes.append(a[1]) or render(*a, **options))
    for threads in (1, 3):
        cudakit.set_num_threads(threads)
        results = []
        for size in (2**40, 0):
            monkeypatch.setattr(plan, "largest_cache_bytes", lambda size=size: size)
            forget()
            launch.lazy_kernel.cache_clear()
            preludes.clear()
            results.append(run())
            assert any("LARGE" in prelude for prelude in preludes) == (size == 0)
        for usual, past in zip(*results, strict=True):
            np.testing.assert_array_equal(past, usual)


@pytest.mark.parametrize(("shape", "data_format"), SHAPES)
@pytest.mark.parametrize(("dtype", "mode"), [("float32", "bilinear"), ("float32", "nearest"), ("bfloat16", "bilinear")])
def test_grid_sample(
    arrays: Arrays,
    rng: np.random.Generator,
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    data_format: str,
    dtype: str,
    mode: str,
) -> None:
    x, grad = (rounded(rng.normal(size=shape), dtype) for _ in range(2))
    grid = rounded(rng.uniform(-1.2, 1.2, (shape[0], *shape[2:], len(shape) - 2)), dtype)
    last = data_format == "channels_last"
    made = [arrays.make(np.moveaxis(a, 1, -1) if last else a, dtype) for a in (grad, x)]
    made.append(arrays.make(grid, dtype))

    def run() -> list[Any]:
        output = cudakit.grid_sample(*made[1:], mode, data_format=data_format)
        return list(map(arrays.back, (output, *cudakit.grid_sample_backward(*made, mode, data_format=data_format))))

    compare(monkeypatch, run)


@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv_backward"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("channels", [6, 32])
def test_deformable(
    arrays: Arrays,
    rng: np.random.Generator,
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    operator: str,
    dtype: str,
    channels: int,
) -> None:
    geometry = Geometry((8, 16), (3, 3), padding=1, channels=channels, out_channels=channels)
    problem: Problem = draw(rng, geometry, dtype).on(arrays, dtype)
    compare(monkeypatch, lambda: [arrays.back(values) for values in call(operator, problem).values()])


LEVELS = {"index0/level": "1", "index0/size": "32K", "index2/level": "2\n", "index2/size": "512K\n"}


@pytest.mark.parametrize(
    ("files", "largest", "second"),
    [
        (LEVELS | {"index3/level": "3", "index3/size": "32768K\n"}, 2**25, 2**19),
        (LEVELS | {"index2/size": "?"}, 2**15, cpuinfo.USUAL_SECOND_LEVEL),
        ({"index2/level": "2"}, cpuinfo.USUAL_LARGEST, cpuinfo.USUAL_SECOND_LEVEL),
        ({}, cpuinfo.USUAL_LARGEST, cpuinfo.USUAL_SECOND_LEVEL),
    ],
)
def test_what_the_system_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], largest: int, second: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(cpuinfo, "CACHES", tmp_path)
    assert cpuinfo.largest_cache_bytes.__wrapped__() == largest
    assert cpuinfo.second_level_cache_bytes.__wrapped__() == second
