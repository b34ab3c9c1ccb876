"""Gradients of gradients: the derivatives, in a direction, of the oracle's values and gradients.

All gradients are derivatives of one number, so the gradients of gradients, times a direction and summed, are the
derivatives of all first ones in this direction, which differences of the oracle's tell to about 1e-8.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cudakit import reference
from cudakit.op import OPS

from . import deformable_problems as deformable
from .conftest import CHANNELS_LAST, COMBINATIONS, LAYOUTS, OUT, SIZES, SOME_COMBINATIONS, Arrays, draw
from .deformable_problems import COORDINATES, GEOMETRIES, Geometry, channels_last
from .tolerances import TOLERANCES, Floats, assert_close, rounded

STEP = 2e-5  # below the distance that problems keep from knots
HALF = ("float16", "bfloat16")

Values = Sequence[Floats | None]


def derivatives(function: Callable[..., Values], given: Values, directions: Values) -> list[Floats | None]:
    """Return the derivatives of a function's results in a direction, None for a result that is not there."""

    def at(step: float) -> Values:
        moved = zip(given, directions, strict=True)
        return function(*[x if x is None or d is None else x + step * d for x, d in moved])

    pairs = zip(at(STEP), at(-STEP), strict=True)
    return [None if ahead is None else (ahead - behind) / (2 * STEP) for ahead, behind in pairs]


def like(rng: np.random.Generator, values: Values, *dtypes: str) -> list[Floats | None]:
    """Draw a direction for each of some arrays."""
    pairs = zip(values, dtypes, strict=True)
    return [None if x is None else rounded(rng.normal(size=x.shape), dtype) for x, dtype in pairs]


def check(
    arrays: Arrays, found: Sequence[Any], expected: Values, dtypes: Sequence[str], names: Sequence[str], **how: Any
) -> None:
    """Compare results with what is expected, in the channels-first format."""
    for one, values, dtype, name in zip(found, expected, dtypes, names, strict=True):
        assert (one is None) == (values is None), name
        if values is not None:
            assert_close(arrays.back(one), values, "float32" if dtype == "float64" else dtype, **how)


def sample_twice(
    arrays: Arrays,
    rng: np.random.Generator,
    sizes: Sequence[int],
    out: Sequence[int],
    attributes: tuple[str, str, bool],
    *,
    dtypes: tuple[str, str] = ("float32", "float32"),
    channels: int = 3,
    last: bool = False,
    along: str = "input grid",
) -> None:
    """Check `grid_sample_double_backward` on a random problem, in directions of these arrays."""
    dtype, grid_dtype = dtypes
    align_corners = attributes[2]
    problem = draw(rng, sizes, out, channels=channels, dtype=dtype, grid_dtype=grid_dtype, align_corners=align_corners)
    x, grid, grad = problem
    drawn = like(rng, (x, grid), dtype, grid_dtype)
    directions = [d if name in along else None for d, name in zip(drawn, ("input", "grid"), strict=True)]

    def oracle(x: Floats, grid: Floats) -> Values:
        return reference.grid_sample(x, grid, *attributes), *reference.grid_sample_backward(grad, x, grid, *attributes)

    def made(values: Floats | None, kind: str, image: bool = True) -> Any:
        if values is None:
            return None
        return arrays.make(np.moveaxis(values, 1, -1) if last and image else values, kind)

    given = (
        *(made(directions[0], dtype), made(directions[1], grid_dtype, False)),
        *(made(grad, dtype), made(x, dtype), made(grid, grid_dtype, False)),
    )
    found = OPS["grid_sample_double_backward"](given, *attributes, "channels_last" if last else "channels_first")
    assert [one.dtype for one in found] == [array.dtype for array in given[2:]]
    expected = derivatives(oracle, (x, grid), directions)
    if last:
        expected = [np.moveaxis(expected[0], 1, -1), np.moveaxis(expected[1], 1, -1), expected[2]]
    check(arrays, found, expected, (dtype, dtype, grid_dtype), ("grad_output", "input", "grid"))


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_mode(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    sample_twice(arrays, rng, SIZES[n], OUT[n], (mode, padding_mode, align_corners))


@pytest.mark.parametrize(
    "dtypes", [*((name, name) for name in ("float64", *HALF)), ("bfloat16", "float32")], ids="-".join
)
@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
def test_every_dtype(
    arrays: Arrays,
    rng: np.random.Generator,
    n: int,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtypes: tuple[str, str],
) -> None:
    sample_twice(arrays, rng, SIZES[n], OUT[n], (mode, padding_mode, align_corners), dtypes=dtypes)


@pytest.mark.parametrize(("n", "mode", "channels"), [*CHANNELS_LAST, (2, "bilinear", 32)])
@pytest.mark.parametrize("last", [False, True])
def test_many_channels(arrays: Arrays, rng: np.random.Generator, n: int, mode: str, channels: int, last: bool) -> None:
    sample_twice(arrays, rng, SIZES[n], OUT[n], (mode, "zeros", False), channels=channels, last=last)


@pytest.mark.parametrize("along", ["input", "grid"])
def test_one_direction(arrays: Arrays, rng: np.random.Generator, along: str) -> None:
    sample_twice(arrays, rng, SIZES[2], OUT[2], ("bicubic", "border", False), along=along)


def sampled(arrays: Arrays, rng: np.random.Generator, change: Callable[[Any], Any] = lambda x: x) -> list[Any]:
    """Return the arrays of a small call, as float32."""
    x, grid, grad = draw(rng, SIZES[2], OUT[2])
    values = (*like(rng, (x, grid), "float32", "float32"), grad, x, grid)
    return [change(arrays.make(one)) for one in values]


SAMPLING = ("bilinear", "zeros", False, "channels_first")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "broadcast" not in name])
def test_strides_do_not_matter(arrays: Arrays, rng: np.random.Generator, layout: str) -> None:
    plain = sampled(arrays, rng)
    others = [LAYOUTS[layout](arrays.xp, x) for x in plain]
    found = OPS["grid_sample_double_backward"](tuple(others), *SAMPLING)
    expected = OPS["grid_sample_double_backward"](tuple(plain), *SAMPLING)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(arrays.back(one), arrays.back(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [(), ("grad_output",), ("input",), ("grid",), ("grad_output", "grid")])
def test_only_what_is_needed(arrays: Arrays, rng: np.random.Generator, names: tuple[str, ...]) -> None:
    op, given = OPS["grid_sample_double_backward"], tuple(sampled(arrays, rng))
    plan = op.options(SAMPLING)._replace(needs=names)
    framework = op._agree(given)
    found, every = op.run(framework, given, plan), op(given, *SAMPLING)
    for name, one, other in zip(("grad_output", "input", "grid"), found, every, strict=True):
        assert (one is not None) == (name in names)
        if one is not None:
            np.testing.assert_allclose(arrays.back(one), arrays.back(other), rtol=1e-5, atol=1e-5)


def test_what_lies_outside_is_not_read(arrays: Arrays) -> None:
    """Nor does a coordinate that is no number move anything."""
    x = np.full((1, 1, 4, 4), np.nan)
    x[..., :2, :2] = [[1, 2], [3, 4]]
    grid = np.array([[[[-0.6, -0.6], [np.nan, 0.0], [5.0, 5.0]]]])
    ones = np.ones((1, 1, 1, 3))
    given = [arrays.make(values) for values in (np.ones_like(x), np.ones_like(grid), ones, x, grid)]
    by_output, by_input, by_grid = map(arrays.back, OPS["grid_sample_double_backward"](tuple(given), *SAMPLING))
    assert by_output[0, 0, 0].tolist() == [1 + 2 * (1 + 2), 0, 0]  # 2 pixels a unit of the grid; slopes 1 and 2
    assert np.isfinite(by_input).all()
    np.testing.assert_allclose(by_grid[0, 0], np.zeros((3, 2)), atol=1e-5)  # neither the ones nor the plane are curved


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7)])
def test_nothing_to_do(arrays: Arrays, shape: tuple[int, ...]) -> None:
    grad, grid = (*shape[:2], 2, 2), (shape[0], 2, 2, 2)
    given = tuple(arrays.make(np.ones(size)) for size in (shape, grid, grad, shape, grid))
    found = OPS["grid_sample_double_backward"](given, *SAMPLING)
    assert [one.shape for one in found] == [grad, shape, grid]
    assert not any(arrays.back(one).any() for one in found)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (1, 3, 5, 7), r"grad_grad_input must have shape \(2, 3, 5, 7\), got \(1, 3, 5, 7\)"),
        (1, (2, 5, 6, 3), r"grad_grad_grid must have shape \(2, 5, 6, 2\)"),
        (2, (2, 3, 5, 5), r"grad_output must have shape \(2, 3, 5, 6\)"),
    ],
)
def test_wrong_shapes(
    arrays: Arrays, rng: np.random.Generator, position: int, shape: tuple[int, ...], message: str
) -> None:
    given = sampled(arrays, rng)
    given[position] = arrays.make(np.ones(shape))
    with pytest.raises(ValueError, match=f"^grid_sample_double_backward: {message}"):
        OPS["grid_sample_double_backward"](tuple(given), *SAMPLING)


# ----------------------------------------------------------------------------------------------------------------------


def convert(g: Geometry, name: str, values: Any, last: bool) -> Any:
    """Return an array in a data format."""
    return channels_last(g, name, values) if last and values is not None else values


def deform_twice(
    arrays: Arrays, rng: np.random.Generator, operator: str, g: Geometry, dtypes: tuple[str, str], last: bool
) -> None:
    """Check what differentiates an operator's gradients on a random problem."""
    dtype, offset_dtype = dtypes
    p = deformable.draw(rng, g, dtype, offset_dtype)
    places, library = (g.kernel, *g.places), reference
    own: dict[str, tuple[tuple[str, ...], str, Any, Callable[..., Values]]] = {
        "deform_im2col": (
            ("input", "offset", "mask"),
            "columns",
            p.columns,
            lambda x, o, m: (
                library.deform_im2col(x, o, *places, m),
                *library.deform_im2col_backward(p.columns, x, o, *places, m),
            ),
        ),
        "deform_col2im": (
            ("columns", "offset", "mask"),
            "input",
            p.input,
            lambda c, o, m: (
                library.deform_col2im(c, o, g.sizes, *places, m),
                library.deform_im2col(p.input, o, *places, m),
                *library.deform_im2col_backward(c, p.input, o, *places, m)[1:],
            ),
        ),
        "deform_conv": (
            ("input", "offset", "weight", "bias", "mask"),
            "output",
            p.output,
            lambda x, o, w, b, m: (
                library.deform_conv(x, o, w, b, *g.places, m),
                *library.deform_conv_backward(p.output, x, o, w, b, *g.places, m),
            ),
        ),
    }
    names, result, grad, oracle = own[operator]
    kinds = [offset_dtype if name in COORDINATES else dtype for name in names]
    values = [getattr(p, name) for name in names]
    directions = like(rng, values, *kinds)
    expected = derivatives(oracle, values, directions)
    every = zip((*names, result, *names), (*directions, grad, *values), (*kinds, dtype, *kinds), strict=True)
    given = tuple(x if x is None else arrays.make(convert(g, name, x, last), kind) for name, x, kind in every)
    data_format = "channels_last" if last else "channels_first"
    options: dict[str, tuple[Any, ...]] = {
        "deform_im2col": (*places, data_format),
        "deform_col2im": (*places, data_format, g.sizes),
        "deform_conv": (*g.places, data_format, None, False),
    }
    name = operator.replace("conv", f"conv{g.n}d")
    found = OPS[f"{name}_double_backward"](given, *options[operator])
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
def test_every_dtype_of_deformable_operators(
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
