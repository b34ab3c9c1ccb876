"""Every deformable operator against the oracle, for every kind of array and argument."""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cudakit
from cudakit import reference

from .conftest import LAYOUTS, Arrays
from .deformable_problems import (
    GEOMETRIES,
    OPERATORS,
    Geometry,
    Problem,
    call,
    channels_last,
    check,
    column_rounding,
    draw,
)
from .tolerances import assert_close

CONVOLUTIONS = ("deform_conv", "deform_conv_backward")
EVERY_OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
ANY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
# Few enough to compile: half types, whose conversions are long on a CPU, above all.
DTYPES = [
    ("float64", "float64", "2-D of all sorts"),
    ("float64", "float64", "3-D asymmetric, no mask"),
    ("float16", "float16", "2-D of all sorts"),
    ("float16", "float32", "2-D of all sorts"),
    ("bfloat16", "bfloat16", "2-D of all sorts"),
    ("bfloat16", "bfloat16", "1-D asymmetric, grouped, no bias"),
    ("bfloat16", "float32", "3-D asymmetric, no mask"),
]
USUAL = GEOMETRIES["2-D"]


@EVERY_OPERATOR
@ANY_GEOMETRY
def test_every_geometry(arrays: Arrays, rng: np.random.Generator, geometry: Geometry, operator: str) -> None:
    check(arrays, operator, draw(rng, geometry).on(arrays))


@EVERY_OPERATOR
@pytest.mark.parametrize(("dtype", "offset_dtype", "name"), DTYPES)
def test_every_dtype(
    arrays: Arrays, rng: np.random.Generator, dtype: str, offset_dtype: str, name: str, operator: str
) -> None:
    made = draw(rng, GEOMETRIES[name], dtype, offset_dtype).on(arrays, dtype, offset_dtype)
    check(arrays, operator, made, dtype, offset_dtype)


@EVERY_OPERATOR
@pytest.mark.parametrize(
    ("batch", "channels", "offset_groups", "groups"),
    [
        *((0, 4, 1, 1), (3, 0, 1, 1), (1, 1, 1, 1), (3, 3, 3, 1), (1, 5, 1, 5), (2, 8, 2, 1), (2, 16, 2, 4)),
        *((3, 17, 1, 1), (1, 24, 3, 2), (1, 64, 1, 1), (1, 66, 2, 1), (1, 34, 17, 2), (1009, 4, 1, 1)),
    ],
)
def test_batches_and_channels(
    arrays: Arrays, rng: np.random.Generator, batch: int, channels: int, offset_groups: int, groups: int, operator: str
) -> None:
    if channels == 0 and operator in CONVOLUTIONS:
        pytest.skip("a weight without channels tells no groups")
    geometry = Geometry((3, 4), (2, 2), 1, 0, 1, offset_groups, groups, batch, channels, out_channels=5 * groups)
    check(arrays, operator, draw(rng, geometry).on(arrays))


@EVERY_OPERATOR
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_single_pixel_of_a_single_channel(arrays: Arrays, rng: np.random.Generator, n: int, operator: str) -> None:
    # Both data formats are one layout then. Repeated, so that memory comes back with the numbers of the run before.
    made = draw(rng, Geometry((1,) * n, (1,) * n, padding=1, channels=1, out_channels=1)).on(arrays)
    for _ in range(3):
        check(arrays, operator, made)


@EVERY_OPERATOR
@pytest.mark.parametrize("out_channels", [1, 3, 32, 65])
def test_output_channels(arrays: Arrays, rng: np.random.Generator, out_channels: int, operator: str) -> None:
    check(arrays, operator, draw(rng, USUAL._replace(out_channels=out_channels)).on(arrays))


@EVERY_OPERATOR
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [4, 17])
def test_every_layout(arrays: Arrays, rng: np.random.Generator, channels: int, layout: str, operator: str) -> None:
    made = draw(rng, USUAL._replace(channels=channels)).on(arrays)
    change = LAYOUTS[layout]
    check(arrays, operator, made.map(lambda _, array: array if array.ndim < 3 else change(arrays.xp, array)))
    for name in ("input", "offset", "mask", "weight", "output", "columns"):
        check(arrays, operator, made._replace(**{name: change(arrays.xp, getattr(made, name))}))


@EVERY_OPERATOR
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_bfloat16(arrays: Arrays, rng: np.random.Generator, layout: str, operator: str) -> None:
    if arrays.device == "cuda":
        pytest.skip("the layouts are made by NumPy's and CuPy's own functions")
    made = draw(rng, USUAL, "bfloat16").on(arrays, "bfloat16")
    moved = made.map(lambda _, array: array if array.ndim < 3 else LAYOUTS[layout](arrays.xp, array))
    check(arrays, operator, moved, "bfloat16")


@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_every_layout_of_a_bias(arrays: Arrays, rng: np.random.Generator, operator: str) -> None:
    made = draw(rng, USUAL).on(arrays)
    xp, bias = arrays.xp, made.bias
    for moved in (bias[::-1], xp.repeat(bias, 2)[::2], xp.broadcast_to(bias[:1], bias.shape)):
        check(arrays, operator, made._replace(bias=moved))


def check_channels_last(
    arrays: Arrays,
    operator: str,
    problem: Problem,
    change: Callable[[Any], Any],
    dtype: str = "float32",
    changed: Collection[str] = Problem._fields,
) -> None:
    """Compare in the other data format; `change` is made to every array in it, or some, and keeps the values."""
    turned = problem.map(lambda name, array: channels_last(problem.geometry, name, array)).on(arrays, dtype)
    moved = turned.map(lambda name, array: change(array) if name in changed else array)
    results = call(operator, moved, data_format="channels_last")
    for name, values in call(operator, problem, reference).items():
        assert (results[name] is None) == (values is None)
        if values is not None:
            expected = channels_last(problem.geometry, name, values)
            scale = column_rounding(arrays, operator, dtype)
            assert_close(arrays.back(results[name]), expected, dtype, scale=scale)


@EVERY_OPERATOR
@pytest.mark.parametrize("channels", [4, 34])
@ANY_GEOMETRY
def test_channels_last(
    arrays: Arrays, rng: np.random.Generator, geometry: Geometry, channels: int, operator: str
) -> None:
    if channels % (geometry.offset_groups * geometry.groups):
        pytest.skip("the groups do not divide so many channels")
    check_channels_last(arrays, operator, draw(rng, geometry._replace(channels=channels)), lambda array: array)


@EVERY_OPERATOR
@pytest.mark.parametrize("channels", [4, 17])
@pytest.mark.parametrize(
    "layout", ["transposed", "reversed", "sliced", "part of the last axis", "read-only", "unaligned"]
)
def test_every_layout_of_channels_last(
    arrays: Arrays, rng: np.random.Generator, layout: str, channels: int, operator: str
) -> None:
    def change(array: Any) -> Any:
        return array if array.ndim < 3 else LAYOUTS[layout](arrays.xp, array)

    check_channels_last(arrays, operator, draw(rng, USUAL._replace(channels=channels)), change)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_offset_groups(arrays: Arrays, rng: np.random.Generator, layout: str, dtype: str) -> None:
    made = draw(rng, USUAL._replace(channels=6, offset_groups=2), dtype).on(arrays, dtype)
    moved = made._replace(input=LAYOUTS[layout](arrays.xp, made.input))
    for operator in CONVOLUTIONS:
        check(arrays, operator, moved, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_channels_last_of_planes(arrays: Arrays, rng: np.random.Generator, operator: str, dtype: str) -> None:
    def planes(array: Any) -> Any:
        xp = arrays.xp
        return xp.moveaxis(xp.moveaxis(array, -1, 1).copy(order="C"), 1, -1) if array.ndim == 4 else array

    problem = draw(rng, USUAL._replace(channels=6, offset_groups=2), dtype)
    check_channels_last(arrays, operator, problem, planes, dtype)


@EVERY_OPERATOR
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((61, 67), (3, 3), padding=1, channels=3, out_channels=8),
        Geometry((29, 31), (3, 3), padding=1, channels=64, out_channels=48, offset_groups=2),
        Geometry((45, 33), (2, 2), stride=2, batch=5, channels=12, out_channels=6, groups=3),
        Geometry((9, 13, 17), (3, 3, 3), padding=1, batch=1, channels=8, out_channels=8),
        Geometry((2003,), (5,), padding=2, channels=6, out_channels=7),
    ],
    ids=str,
)
def test_many_tiles(arrays: Arrays, rng: np.random.Generator, geometry: Geometry, operator: str) -> None:
    # Coordinates are that much less exact than in a small image.
    check(arrays, operator, draw(rng, geometry).on(arrays), scale=max(geometry.sizes) / 8)


@EVERY_OPERATOR
@pytest.mark.parametrize("reach", [0.01, 20.0])
def test_near_and_far_offsets(arrays: Arrays, rng: np.random.Generator, reach: float, operator: str) -> None:
    check(arrays, operator, draw(rng, USUAL, reach=reach).on(arrays))


def smallest_workspace(function: str, arguments: tuple[Any, ...]) -> int:
    """Return the minimum that the error of a workspace of one byte names."""
    with pytest.raises(ValueError, match=rf"^{function}: workspace must .*\d.*, got 1\b") as raised:
        getattr(cudakit, function)(*arguments, workspace=1)
    return int(re.findall(r"\d+", str(raised.value).partition("workspace")[2].rpartition("got")[0])[-1])


@pytest.mark.parametrize("operator", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("name", "channels"), [("1-D", 4), ("2-D", 4), ("2-D", 32), ("2-D of all sorts", 4), ("3-D", 4)]
)
def test_any_sufficient_workspace(
    arrays: Arrays, rng: np.random.Generator, name: str, channels: int, operator: str
) -> None:
    made = draw(rng, GEOMETRIES[name]._replace(batch=5, channels=channels)).on(arrays)
    function = operator.replace("conv", f"conv{made.geometry.n}d")
    smallest = smallest_workspace(function, made.arguments(operator))
    for workspace in (smallest, smallest + 1, 3 * smallest + 5, 1 << 40):
        check(arrays, operator, made, workspace=workspace)
    with pytest.raises(ValueError, match=rf"^{function}: workspace must .*{smallest}.*, got {smallest - 1}"):
        getattr(cudakit, function)(*made.arguments(operator), workspace=smallest - 1)


def test_arguments_have_names_and_defaults(arrays: Arrays, rng: np.random.Generator) -> None:
    p = draw(rng, Geometry((5, 6), (2, 3), masked=False, biased=False)).on(arrays)
    columns = cudakit.deform_im2col(p.input, p.offset, (2, 3))
    named = cudakit.deform_im2col(
        input=p.input,
        offset=p.offset,
        kernel_size=(2, 3),
        stride=1,
        padding=0,
        dilation=1,
        mask=None,
        data_format="channels_first",
    )
    assert (arrays.back(columns) == arrays.back(named)).all()
    output = cudakit.deform_conv2d(p.input, p.offset, p.weight)
    named = cudakit.deform_conv2d(
        input=p.input,
        offset=p.offset,
        weight=p.weight,
        bias=None,
        stride=1,
        padding=0,
        dilation=1,
        mask=None,
        data_format="channels_first",
        workspace=None,
    )
    assert (arrays.back(output) == arrays.back(named)).all()


@EVERY_OPERATOR
def test_numbers_may_come_one_for_all_dimensions_or_in_any_sequence(
    arrays: Arrays, rng: np.random.Generator, operator: str
) -> None:
    geometry = Geometry((7, 8), (3, 3), 2, 1, 2)
    made = draw(rng, geometry).on(arrays)
    one = call(operator, made)
    for number in (lambda x: (x, x), lambda x: [x, x], lambda x: np.array([x, x]), np.int64):
        places = {"stride": number(2), "padding": number(1), "dilation": number(2)}
        for name, values in call(operator, made._replace(geometry=geometry._replace(**places))).items():
            assert (arrays.back(values) == arrays.back(one[name])).all()


def test_one_kernel_size_for_all_dimensions(arrays: Arrays, rng: np.random.Generator) -> None:
    p = draw(rng, Geometry((5, 6), (2, 2), masked=False)).on(arrays)
    columns = cudakit.deform_im2col(p.input, p.offset, 2)
    assert (arrays.back(columns) == arrays.back(cudakit.deform_im2col(p.input, p.offset, (2, 2)))).all()


@EVERY_OPERATOR
def test_arguments_are_not_written(arrays: Arrays, rng: np.random.Generator, operator: str) -> None:
    problem = draw(rng, USUAL)
    made = problem.on(arrays)
    call(operator, made)
    made.map(lambda name, array: np.testing.assert_array_equal(arrays.back(array), getattr(problem, name)))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Draw a geometry whose output is not empty."""
    n = draw(st.integers(1, 3))

    def numbers(low: int, high: int, count: int = n) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    padding = draw(st.sampled_from([0, 1, 2, n, 2 * n]))
    groups, offset_groups = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (1, 4)]))
    geometry = Geometry(
        sizes=numbers(1, 6),
        kernel=numbers(1, 3),
        stride=numbers(1, 3),
        padding=padding if padding < n else numbers(0, 3, padding),
        dilation=numbers(1, 2),
        offset_groups=offset_groups,
        groups=groups,
        batch=draw(st.integers(0, 3)),
        channels=4,
        out_channels=groups * draw(st.integers(1, 3)),
        masked=draw(st.booleans()),
        biased=draw(st.booleans()),
    )
    assume(min(geometry.out) > 0)
    return geometry


@EVERY_OPERATOR
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
def test_random_problems(arrays: Arrays, operator: str, geometry: Geometry, seed: int) -> None:
    check(arrays, operator, draw(np.random.default_rng(seed), geometry).on(arrays))
