"""Convolutions of few pixels with many channels, which a CPU multiplies with weights as they are given."""

from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit.deformable import conv_host, conv_host_backward_plan, conv_host_partition, conv_host_tiling

from .conftest import Arrays, forget
from .deformable_problems import Geometry, call, check, draw

OPERATORS = pytest.mark.parametrize("operator", ["deform_conv", "deform_conv_backward"])
SQUARE = Geometry((5, 7), (3, 3), padding=1, batch=1, channels=96, out_channels=70)
GEOMETRIES = [
    pytest.param(SQUARE, id="a tile"),
    pytest.param(SQUARE._replace(sizes=(9, 13), out_channels=128, masked=False, biased=False), id="two tiles"),
    pytest.param(SQUARE._replace(sizes=(3, 5), batch=3), id="images"),
    pytest.param(SQUARE._replace(sizes=(4, 4), channels=128, groups=2, out_channels=78), id="groups"),
    pytest.param(SQUARE._replace(channels=64, offset_groups=2), id="offset groups"),
    pytest.param(SQUARE._replace(sizes=(4, 4), channels=192, groups=3, offset_groups=2, out_channels=120), id="both"),
    pytest.param(SQUARE._replace(kernel=(1, 1), channels=352), id="a kernel of one pixel"),
    pytest.param(SQUARE._replace(kernel=(2, 2), channels=160, stride=2), id="a smaller last chunk"),
    pytest.param(Geometry((33,), (7,), padding=3, channels=64, out_channels=80), id="1-D"),
    pytest.param(Geometry((3, 4, 5), (2, 2, 2), batch=1, channels=64, out_channels=64), id="3-D"),
]


def only_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack no weights, in whatever time."""
    monkeypatch.setattr(conv_host_tiling, "PACKING", float("inf"))
    for limit in ("FEWER_PIXELS", "FEWER_PIXELS_IN_HALF_PRECISION"):
        monkeypatch.setattr(conv_host_partition, limit, 1e-6)
    choose = conv_host_backward_plan.with_given_weights

    def given_weights(conv: conv_host.HostConvolution, threads: int) -> conv_host.HostConvolution:
        found = choose(conv, threads)
        assert found.given_weights
        return found

    monkeypatch.setattr(conv_host_backward_plan, "with_given_weights", given_weights)


@pytest.fixture
def given(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make sure that weights are used as given; put the number of threads back."""
    if arrays.device != "cpu":
        pytest.skip("a GPU has cuBLAS")
    before = cudakit.get_num_threads()
    only_given(monkeypatch)
    forget()
    yield
    forget()
    cudakit.set_num_threads(before)


@OPERATORS
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_against_the_oracle(
    arrays: Arrays,
    rng: np.random.Generator,
    given: None,
    geometry: Geometry,
    operator: str,
    threads: int,
    dtype: str,
) -> None:
    cudakit.set_num_threads(threads)
    check(arrays, operator, draw(rng, geometry, dtype).on(arrays, dtype), dtype)


@pytest.mark.parametrize("pixels", [1, 2, 3, 15, 16, 17, 18, 19, 31, 33, 49, 98, 130])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_threads_share_outputs_and_change_no_bit(
    arrays: Arrays, rng: np.random.Generator, given: None, pixels: int, dtype: str
) -> None:
    """Whatever the number of pixels: vectors of them in pairs, without another, and pixels alone."""
    problem = draw(rng, Geometry((pixels,), (3,), padding=1, batch=1, channels=64, out_channels=133), dtype)
    made = problem.on(arrays, dtype)
    results = []
    for threads in (1, 2, 5, 16):
        cudakit.set_num_threads(threads)
        results.append(arrays.back(call("deform_conv", made)["output"]))
        np.testing.assert_array_equal(results[-1], results[0])
    check(arrays, "deform_conv", made, dtype)


@pytest.mark.parametrize("needs", [("weight",), ("input",), ("offset",), ("input", "weight"), ("offset", "mask")])
def test_what_is_asked_for(arrays: Arrays, rng: np.random.Generator, given: None, needs: tuple[str, ...]) -> None:
    problem = draw(rng, SQUARE).on(arrays)
    whole, part = call("deform_conv_backward", problem), call("deform_conv_backward", problem, needs=needs)
    for name, values in part.items():
        assert (values is not None) == (name in needs)
        if values is not None:
            np.testing.assert_array_equal(arrays.back(values), arrays.back(whole[name]))


def test_many_threads_and_few_channels_pack(arrays: Arrays, rng: np.random.Generator) -> None:
    before = cudakit.get_num_threads()
    try:
        cudakit.set_num_threads(7)
        check(arrays, "deform_conv_backward", draw(rng, SQUARE).on(arrays))
    finally:
        cudakit.set_num_threads(before)


@OPERATORS
def test_numbers_that_are_not_finite(arrays: Arrays, rng: np.random.Generator, given: None, operator: str) -> None:
    """What is beside the pixels of a tile, or the outputs of a block, is not multiplied into them."""
    problem = draw(rng, SQUARE._replace(sizes=(3, 3)))
    weight, output = np.array(problem.weight), np.array(problem.output)
    weight[-1], output[0, -1] = np.inf, np.nan
    p = problem._replace(weight=weight, output=output).on(arrays)
    options = {"padding": 1, "mask": p.mask}
    if operator == "deform_conv":
        found = arrays.back(cudakit.deform_conv2d(p.input, p.offset, p.weight, p.bias, **options))
        assert np.isfinite(found[:, :-1]).all()
        assert not np.isfinite(found[:, -1]).any()
    else:
        found = arrays.back(cudakit.deform_conv2d_backward(p.output, p.input, p.offset, p.weight, **options).weight)
        assert np.isfinite(found[:-1]).all()
        assert np.isnan(found[-1]).all()
