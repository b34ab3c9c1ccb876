"""Gradients of the gradients of deformable operators, in directions of their arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from cudakit import reference
from cudakit.deformable.conv_ops import NAMES
from cudakit.op import OPS

from .conftest import Arrays
from .deformable_problems import COORDINATES, GEOMETRIES, Geometry, Problem, channels_last, draw
from .directions import HALF, Values, check, derivatives, like
from .tolerances import TOLERANCES, Floats


def convert(g: Geometry, name: str, values: Any, last: bool) -> Any:
    """Return an array in a data format."""
    return channels_last(g, name, values) if last and values is not None else values


class Case(NamedTuple):
    """An operator: names of its arrays and its result, the oracle of its values and gradients, and its options."""

    names: tuple[str, ...]
    result: str
    oracle: Callable[..., Values]
    options: tuple[Any, ...]


def case_of(operator: str, p: Problem, data_format: str) -> Case:
    """Return how an operator is called on a problem."""
    g = p.geometry
    places = (g.kernel, *g.places)

    def im2col(x: Floats, o: Floats, m: Floats | None) -> Values:
        gradients = reference.deform_im2col_backward(p.columns, x, o, *places, m)
        return reference.deform_im2col(x, o, *places, m), *gradients

    def col2im(c: Floats, o: Floats, m: Floats | None) -> Values:
        _, *gradients = reference.deform_im2col_backward(c, p.input, o, *places, m)
        by_columns = reference.deform_im2col(p.input, o, *places, m)
        return reference.deform_col2im(c, o, g.sizes, *places, m), by_columns, *gradients

    def convolve(x: Floats, o: Floats, w: Floats, b: Floats | None, m: Floats | None) -> Values:
        gradients = reference.deform_conv_backward(p.output, x, o, w, b, *g.places, m)
        return reference.deform_conv(x, o, w, b, *g.places, m), *gradients

    return {
        "deform_im2col": Case(("input", *COORDINATES), "columns", im2col, (*places, data_format)),
        "deform_col2im": Case(("columns", *COORDINATES), "input", col2im, (*places, data_format, g.sizes)),
        "deform_conv": Case(NAMES, "output", convolve, (*g.places, data_format, None, False)),
    }[operator]


def deform_twice(
    arrays: Arrays, rng: np.random.Generator, operator: str, g: Geometry, dtypes: tuple[str, str], last: bool
) -> None:
    """Check what differentiates an operator's gradients on a random problem."""
    dtype, offset_dtype = dtypes
    p = draw(rng, g, dtype, offset_dtype)
    names, result, oracle, options = case_of(operator, p, "channels_last" if last else "channels_first")
    kinds = [offset_dtype if name in COORDINATES else dtype for name in names]
    values = [getattr(p, name) for name in names]
    directions = like(rng, values, *kinds)
    expected = derivatives(oracle, values, directions)
    every = zip(
        (*names, result, *names), (*directions, getattr(p, result), *values), (*kinds, dtype, *kinds), strict=True
    )
    given = tuple(x if x is None else arrays.make(convert(g, name, x, last), kind) for name, x, kind in every)
    name = operator.replace("conv", f"conv{g.n}d")
    found = OPS[f"{name}_double_backward"](given, *options)
    wanted = [convert(g, one, values, last) for one, values in zip((result, *names), expected, strict=True)]
    scale = 1.0
    if operator == "deform_conv" and dtype in HALF:  # columns are of half precision, too
        rtol, atol = TOLERANCES[dtype]
        scale = 2 * rtol / atol
    check(arrays, found, wanted, (dtype, *kinds), (result, *names), scale=scale)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
def test_every_geometry(arrays: Arrays, rng: np.random.Generator, operator: str, geometry: str, last: bool) -> None:
    deform_twice(arrays, rng, operator, GEOMETRIES[geometry], ("float32", "float32"), last)


@pytest.mark.parametrize(
    "dtypes", [*((name, name) for name in ("float64", *HALF)), ("float16", "float32")], ids="-".join
)
@pytest.mark.parametrize("geometry", ["1-D asymmetric, grouped, no bias", "2-D of all sorts", "3-D"])
@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
def test_every_dtype(
    arrays: Arrays, rng: np.random.Generator, operator: str, geometry: str, dtypes: tuple[str, str]
) -> None:
    deform_twice(arrays, rng, operator, GEOMETRIES[geometry], dtypes, last=False)


@pytest.mark.parametrize("groups", [1, 2, 32])
def test_vectors_of_channels(arrays: Arrays, rng: np.random.Generator, groups: int) -> None:
    geometry = Geometry((6, 5), (3, 3), padding=1, channels=32, out_channels=32, groups=groups, offset_groups=2)
    for operator in ("deform_im2col", "deform_col2im", "deform_conv"):
        deform_twice(arrays, rng, operator, geometry, ("float32", "float32"), last=True)


def test_depthwise_and_pointwise(arrays: Arrays, rng: np.random.Generator) -> None:
    """A product of columns that is a depthwise convolution itself."""
    geometry = Geometry((5, 6), (1, 1), channels=8, out_channels=8, groups=8)
    deform_twice(arrays, rng, "deform_conv", geometry, ("float32", "float32"), last=False)


def test_a_corner_of_weight_0_is_not_read(arrays: Arrays) -> None:
    line, offset = np.array([[[1.0, np.nan, 4.0]]]), np.zeros((1, 1, 3))
    given = (None, arrays.make(np.ones_like(offset)), None, arrays.make(np.ones((1, 1, 3))), arrays.make(line))
    op = OPS["deform_im2col_double_backward"]
    found = op((*given, arrays.make(offset), None), (1,), 1, 0, 1, "channels_first")
    by_columns, by_input, by_offset, by_mask = (x if x is None else arrays.back(x) for x in found)
    assert by_columns[0, 0, 2] == -4  # the slope to the right of the last pixel
    assert np.isnan(by_columns[0, 0, :2]).all()  # slopes to or from the pixel
    assert by_input.tolist() == [[[-1, 0, 0]]]
    assert not by_offset.any()
    assert by_mask is None


def test_one_pixel_with_strides_of_0(arrays: Arrays) -> None:
    """Of its channels a matrix library wants to know how far apart they would be if there were more."""
    x, offset, output = (arrays.xp.ones((1, 1, size), np.float32) for size in (2, 1, 3))
    weight, grad = arrays.xp.full((3, 2, 1), 2, np.float32), arrays.xp.broadcast_to(output[0, 0], output.shape)
    given = (x, None, weight, None, None, grad, x, offset * 0, weight, None, None)
    found = OPS["deform_conv1d_double_backward"](given, 1, 0, 1, "channels_last", None, False)
    assert arrays.back(found[0]).tolist() == [[[2 * (2 + 2)] * 3]]
    assert arrays.back(found[1]).tolist() == [[[3 * 2] * 2]]


def test_one_image_with_a_batch_stride_of_0(arrays: Arrays) -> None:
    """It is contiguous, but how it lies says nothing of the results' size."""
    ones, sizes = arrays.make(np.ones((1, 1, 3))), ((1, 1, 1), (1,))
    weight, bias = (arrays.make(np.full(size, 2.0)) for size in sizes)
    one = arrays.xp.broadcast_to(ones[0], ones.shape)
    directions, given = (one, arrays.xp.zeros_like(ones), weight, bias, None), (one, one, one * 0, weight, bias, None)
    found = OPS["deform_conv1d_double_backward"]((*directions, *given), 1, 0, 1, "channels_first", None, False)
    assert arrays.back(found[0]).tolist() == [[[2 + 2 + 2] * 3]]  # W x' + W' x + b'
    assert arrays.back(found[3]).tolist() == [[[3]]]


@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
def test_no_images(arrays: Arrays, rng: np.random.Generator, operator: str) -> None:
    deform_twice(arrays, rng, operator, GEOMETRIES["2-D"]._replace(batch=0), ("float32", "float32"), last=False)
