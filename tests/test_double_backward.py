"""Gradients of `grid_sample`'s gradients, in directions of its arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cudakit import reference
from cudakit.op import OPS

from .conftest import CHANNELS_LAST, COMBINATIONS, LAYOUTS, OUT, SIZES, SOME_COMBINATIONS, Arrays, draw
from .directions import HALF, Values, check, derivatives, like
from .tolerances import Floats


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


def test_a_direction_of_nothing(arrays: Arrays) -> None:
    x, offset = arrays.make(np.ones((1, 1, 3))), arrays.make(np.zeros((1, 1, 3)))
    message = r"grad_grad_mask must be None where mask is, got shape \(1, 1, 3\)"
    with pytest.raises(ValueError, match=f"^deform_im2col_double_backward: {message}"):
        OPS["deform_im2col_double_backward"]((x, offset, x, x, x, offset, None), 1, 1, 0, 1, "channels_first")


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
