"""Convolutions whose channels are groups of their own, which a GPU computes without columns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cudakit.deformable import conv_cuda_depthwise, conv_ops

from .conftest import Arrays, forget
from .deformable_problems import Geometry, call, check, draw
from .test_deformable import check_channels_last
from .tolerances import assert_close

OPERATORS = pytest.mark.parametrize("operator", ["deform_conv", "deform_conv_backward"])
SQUARE = Geometry((13, 11), (3, 3), padding=1, batch=3)
CASES = [
    pytest.param((SQUARE, 6, 1), id="channels that are no vectors"),
    pytest.param((SQUARE._replace(masked=False, biased=False), 64, 1), id="vectors"),
    pytest.param((SQUARE._replace(stride=2, kernel=(2, 3)), 48, 2), id="lanes without channels"),
    pytest.param((SQUARE._replace(kernel=(1, 1), padding=0), 320, 1), id="blocks of channels, one tap"),
    pytest.param((Geometry((23,), (5,), padding=2, batch=2), 32, 4), id="1-D"),
    pytest.param((Geometry((5, 4, 6), (2, 2, 2), batch=2), 16, 2), id="3-D"),
]
Case = tuple[Geometry, int, int]


def depthwise(case: Case) -> Geometry:
    """Return a problem with so many channels and offset groups."""
    geometry, channels, groups = case
    return geometry._replace(channels=channels, out_channels=channels, groups=channels, offset_groups=groups)


@pytest.fixture(params=[1, 1 << 26], ids=["an image at a time", "all images"])
def copied(request: pytest.FixtureRequest, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plan with so many bytes of copies, and with more than one chunk of pixels; only a GPU does."""
    if arrays.device == "cpu":
        pytest.skip("a CPU keeps columns in its cache")
    monkeypatch.setattr(conv_cuda_depthwise, "CUDA_COPY_BYTES", request.param)
    forget()
    yield
    forget()


@OPERATORS
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
def test_values(arrays: Arrays, rng: np.random.Generator, copied: None, case: Case, last: bool, operator: str) -> None:
    problem = draw(rng, depthwise(case))
    if last:
        check_channels_last(arrays, operator, problem, lambda array: array)
    else:
        check(arrays, operator, problem.on(arrays))


@OPERATORS
@pytest.mark.parametrize(
    ("dtype", "offsets"), [("float16", "float32"), ("bfloat16", "bfloat16"), ("float64", "float64")]
)
def test_dtypes(
    arrays: Arrays, rng: np.random.Generator, copied: None, dtype: str, offsets: str, operator: str
) -> None:
    problem = draw(rng, depthwise((SQUARE, 32, 2)), dtype, offsets)
    check(arrays, operator, problem.on(arrays, dtype, offsets), dtype)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]])
@pytest.mark.parametrize("needs", [("input",), ("weight",), ("offset", "weight"), ("mask",)], ids="+".join)
def test_needs(arrays: Arrays, rng: np.random.Generator, copied: None, case: Case, needs: tuple[str, ...]) -> None:
    made = draw(rng, depthwise(case)._replace(masked=True)).on(arrays)
    every, some = (call("deform_conv_backward", made, needs=names) for names in (conv_ops.NAMES, needs))
    assert {name for name, gradient in some.items() if gradient is not None} == set(needs)
    for name in needs:
        assert_close(arrays.back(some[name]), arrays.back(every[name]), "float32")


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("name", ["input", "output"])
def test_arrays_that_are_not_aligned(
    arrays: Arrays, rng: np.random.Generator, copied: None, name: str, last: bool
) -> None:
    def shifted(array: Any) -> Any:
        flat = arrays.make(np.zeros(arrays.back(array).size + 1), "float32")
        flat[1:] = array.reshape(-1)
        return flat[1:].reshape(array.shape)

    problem = draw(rng, depthwise((SQUARE, 32, 1)))
    if last:
        check_channels_last(arrays, "deform_conv_backward", problem, shifted, changed=(name,))
    else:
        made = problem.on(arrays)
        check(arrays, "deform_conv_backward", made._replace(**{name: shifted(getattr(made, name))}))
