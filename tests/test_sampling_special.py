"""Coordinates that are no ordinary numbers, exact knots, and pixels that are not in any footprint."""

import numpy as np
import pytest

import cudakit
from cudakit import reference

from .conftest import COMBINATIONS, MODES, PADDING_MODES, SOME_COMBINATIONS, Arrays
from .tolerances import Floats, assert_close, pixel_coordinates, rounded

ORDINARY = 0.123  # not near a knot of any size used here


def compare(
    arrays: Arrays,
    x: Floats,
    grid: Floats,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtype: str = "float32",
    *,
    last: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Compare values and both gradients with the oracle's; return them, in float64.

    The one image becomes a batch of two, which shares its kernels with the other tests.
    """
    attributes = (mode, padding_mode, align_corners)
    count = 1.0 + np.arange(np.prod(grid.shape[:-1]) * x.shape[1])
    grad_output = (count % 8 / 8).reshape(*x.shape[:2], *grid.shape[1:-1])
    x, grid, grad_output = (np.repeat(array, 2, axis=0) for array in (x, grid, grad_output))
    expected = (
        reference.grid_sample(x, grid, *attributes),
        *reference.grid_sample_backward(grad_output, x, grid, *attributes),
    )
    to_end, back = ((1, -1), (-1, 1)) if last else ((1, 1), (1, 1))
    made_x, made_grad = (arrays.make(np.moveaxis(array, *to_end), dtype) for array in (x, grad_output))
    made_grid, data_format = arrays.make(grid, dtype), "channels_last" if last else "channels_first"
    gradients = cudakit.grid_sample_backward(made_grad, made_x, made_grid, *attributes, data_format=data_format)
    values = cudakit.grid_sample(made_x, made_grid, *attributes, data_format=data_format)
    images = (np.moveaxis(arrays.back(array), *back) for array in (values, gradients.input))
    actual = [*images, arrays.back(gradients.grid)]
    for result, values in zip(actual, expected, strict=True):
        assert_close(result, values, dtype)
    values, grad_input, grad_grid = (array[:1] for array in actual)
    return values, grad_input, grad_grid


def special_grid(dtype: str, n: int) -> Floats:
    """Each special coordinate in each place of an otherwise ordinary point, and in all places at once."""
    largest = float(np.finfo(dtype).max if dtype.startswith("float") else 3e38)
    special = [np.nan, np.inf, -np.inf, largest, -largest]
    if dtype != "float16":
        special += [1e10, -1e10, 1e30, -1e30]
    points = np.full((len(special), n + 1, n), ORDINARY)
    for d in range(n):
        points[:, d, d] = special
    points[:, n, :] = np.array(special)[:, None]
    with np.errstate(over="ignore"):
        return rounded(points.reshape(1, -1, *[1] * (n - 1), n), dtype)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("sizes", [(5,), (5, 6), (3, 4, 5), (1, 4)])
def test_special_coordinates(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> None:
    x = rounded(rng.uniform(1, 2, size=(1, 3, *sizes)), "float32")
    values, *gradients = compare(arrays, x, special_grid("float32", len(sizes)), mode, padding_mode, align_corners)
    assert all(np.isfinite(array).all() for array in (values, *gradients))


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_special_coordinates_of_other_dtypes(
    arrays: Arrays, rng: np.random.Generator, dtype: str, n: int, mode: str, padding_mode: str, align_corners: bool
) -> None:
    grid = special_grid(dtype, n)
    if dtype == "float16":  # its largest number is an ordinary coordinate, if one far outside
        grid = grid[:, ~(np.abs(grid) == 65504).reshape(grid.shape[1], -1).any(axis=1)]
    x = rounded(rng.uniform(1, 2, size=(1, 3, *(5, 6, 4)[:n])), dtype)
    compare(arrays, x, grid, mode, padding_mode, align_corners, dtype)


@pytest.mark.parametrize("align_corners", [False, True])
def test_reflection_of_what_is_far_away(arrays: Arrays, rng: np.random.Generator, align_corners: bool) -> None:
    """Sums of a few powers of two, so that every position between the reflected pixels is exact."""
    far = np.array([sign * 2.0**k + rest for sign in (-1, 1) for k in range(8, 28) for rest in (0.25, 0.6875, 1.5)])
    x = rng.uniform(1, 2, size=(1, 3, 8))
    compare(arrays, x, far.reshape(1, -1, 1), "bilinear", "reflection", align_corners, "float64")


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_coordinate_reads_nothing(arrays: Arrays, mode: str, padding_mode: str) -> None:
    x = np.full((1, 3, 4, 5), np.nan)
    grid = np.array([[np.nan, ORDINARY], [ORDINARY, np.nan], [np.nan, np.inf], [-np.inf, np.nan]]).reshape(1, 2, 2, 2)
    results = compare(arrays, x, grid, mode, padding_mode, False)
    assert not any(array.any() for array in results)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [(5,), (5, 7), (3, 4, 5)])
@pytest.mark.parametrize("mode", MODES)
def test_samples_outside_read_nothing(arrays: Arrays, mode: str, sizes: tuple[int, ...], align_corners: bool) -> None:
    x, n = np.full((1, 3, *sizes), np.nan), len(sizes)
    outside = [-9.0, -3.5, 3.5, 9.0, np.inf, -np.inf, 1e9, 1e30]
    grid = np.full((1, len(outside), *[1] * (n - 1), n), ORDINARY)
    for i, g in enumerate(outside):
        grid[0, i, ..., i % n] = g
    results = compare(arrays, x, rounded(grid, "float32"), mode, "zeros", align_corners)
    assert not any(array.any() for array in results)


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("mode", "near", "far"), [("nearest", 0, 0), ("bilinear", 0, 1), ("bicubic", 1, 2)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_pixels_outside_the_footprint_do_not_show(
    arrays: Arrays, n: int, mode: str, near: int, far: int, padding_mode: str, pixel: float
) -> None:
    x = np.full((1, 3, *[8] * n), pixel)
    footprint = (slice(None), slice(None), *[slice(3 - near, 3 + far + 1)] * n)
    x[footprint] = np.arange(x[footprint].size, dtype=float).reshape(x[footprint].shape)
    grid = np.full((1, *[1] * n, n), (2 * 3.25 + 1) / 8 - 1)
    results = compare(arrays, x, grid, mode, padding_mode, False)
    assert all(np.isfinite(array).all() for array in results)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_sample_of_the_last_pixel_reads_no_other(arrays: Arrays, n: int, mode: str, padding_mode: str) -> None:
    x = np.full((1, 3, *[5] * n), np.nan)
    x[(..., *[-1] * n)] = [1.0, 2.0, 3.0]
    results = compare(arrays, x, np.ones((1, *[1] * n, n)), mode, padding_mode, True)
    assert all(np.isfinite(array).all() for array in results)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_across_the_edge_do_not_show(arrays: Arrays, mode: str) -> None:
    # The footprint hangs over the edge, and the pixels that would follow in memory are those of other rows.
    x = np.full((1, 3, 8, 8), np.nan)
    x[:, :, :2, :2] = 1.0
    grid = np.full((1, 1, 1, 2), (2 * -0.375 + 1) / 8 - 1)
    results = compare(arrays, x, grid, mode, "zeros", False)
    assert all(np.isfinite(array).all() for array in results)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
def test_exact_knots(
    arrays: Arrays, rng: np.random.Generator, mode: str, padding_mode: str, align_corners: bool
) -> None:
    # With these sizes every half pixel is exact in float32: halves round to even, slopes are the right-hand ones.
    size = 5 if align_corners else 4
    twice = np.arange(-7.0, 2 * size + 7)
    grid = (twice / (size - 1) - 1 if align_corners else (twice + 1) / size - 1).reshape(1, -1, 1)
    assert (2 * pixel_coordinates(grid, (size,), align_corners)[0, :, 0] == twice).all()
    x = rng.integers(-9, 9, size=(1, 3, size)).astype(np.float64)
    compare(arrays, x, grid, mode, padding_mode, align_corners)


# Of the 70 samples a CPU takes 32 at a time; where none of them is beyond the edge, their slopes need no look at it but
# for those at the edge itself.
@pytest.mark.parametrize("beyond", [0, 3])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_exact_knots_of_many_samples(
    arrays: Arrays, rng: np.random.Generator, n: int, mode: str, padding_mode: str, channels: int, beyond: int
) -> None:
    sizes = (4, 8, 4)[:n]
    drawn = [rng.integers(-beyond, 2 * size - 2 + beyond, size=(1, 70)) for size in sizes[::-1]]
    twice = np.stack(drawn, axis=-1)
    grid = ((twice + 1) / np.array(sizes[::-1]) - 1).reshape(1, 70, *(1,) * (n - 1), n)
    assert (2 * pixel_coordinates(grid, sizes, False) == twice.reshape(grid.shape)).all()
    x = rng.integers(-9, 9, size=(1, channels, *sizes)).astype(np.float64)
    compare(arrays, x, grid, mode, padding_mode, False)


@pytest.mark.parametrize("needs", [("grid",), ("input", "grid")])
def test_nearest_neighbours_have_no_slope(arrays: Arrays, needs: tuple[str, ...]) -> None:
    grid = arrays.make(np.linspace(-1, 1, 24).reshape(2, 3, 2, 2))
    image, grad = arrays.make(np.full((2, 3, 5, 4), np.nan)), arrays.make(np.ones((2, 3, 3, 2)))
    grads = cudakit.grid_sample_backward(grad, image, grid, mode="nearest", needs=needs)
    assert not np.any(arrays.back(grads.grid))
    assert (grads.input is None) == ("input" not in needs)


def test_halves_round_to_even(arrays: Arrays) -> None:
    x, twice = np.arange(1.0, 5.0).reshape(1, 1, 4), np.arange(-2.0, 9.0)
    grid = ((twice + 1) / 4 - 1).reshape(1, -1, 1)
    values = arrays.back(cudakit.grid_sample(arrays.make(x), arrays.make(grid), "nearest"))
    #  position  -1  -.5  0  .5  1  1.5  2  2.5  3  3.5  4
    assert values.ravel().tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 4, 0, 0]


@pytest.mark.parametrize(("position", "slope"), [(-1, 1), (0, 1), (1, 2), (2, 4), (3, -8), (4, 0)])
def test_the_slope_at_a_knot_is_the_right_hand_one(arrays: Arrays, position: float, slope: float) -> None:
    x = arrays.make([[[1, 2, 4, 8]]])
    grid = arrays.make([[[(2 * position + 1) / 4 - 1]]])
    gradients = cudakit.grid_sample_backward(arrays.make([[[1]]]), x, grid, needs=("grid",))
    assert arrays.back(gradients.grid).item() == slope * 4 / 2  # half the size: from pixels to normalised coordinates


@pytest.mark.parametrize("mode", MODES)
def test_reflection_about_a_single_pixel(arrays: Arrays, mode: str) -> None:
    grid = np.linspace(-5, 5, 11).reshape(1, 11, 1)
    values, _, grad_grid = compare(arrays, np.full((1, 3, 1), 7.0), grid, mode, "reflection", True)
    assert (values == 7).all()
    assert not grad_grid.any()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("mode", MODES)
def test_the_ends_of_the_line_are_the_edge_pixels(
    arrays: Arrays, mode: str, padding_mode: str, align_corners: bool
) -> None:
    x, grid = np.arange(1.0, 6.0).reshape(1, 1, 5), np.array([-np.inf, -1e30, 1e10, np.inf]).reshape(1, 4, 1)
    values, grad_input, grad_grid = compare(arrays, x, rounded(grid, "float32"), mode, padding_mode, align_corners)
    assert values.tolist() == [[[1, 1, 5, 5]]]
    assert grad_input.tolist() == [[[(1 + 2) / 8, 0, 0, 0, (3 + 4) / 8]]]
    assert not grad_grid.any()


@pytest.mark.parametrize(
    ("channels", "mode", "last"),
    [
        *((channels, "bilinear", False) for channels in (1, 3, 16, 20)),
        *((3, *form) for form in (("bilinear", True), ("bicubic", False), ("bicubic", True))),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outside_no_gradient_counts(arrays: Arrays, channels: int, mode: str, last: bool, bad: float) -> None:
    shape = (1, 4, 4, channels) if last else (1, channels, 4, 4)
    x, grid = np.ones(shape), np.full((1, 1, 3, 2), [[np.nan, 0], [9, 0], [0, 9]])
    grad = np.full((1, 1, 3, channels) if last else (1, channels, 1, 3), bad)
    data_format = "channels_last" if last else "channels_first"
    found = cudakit.grid_sample_backward(*map(arrays.make, (grad, x, grid)), mode, data_format=data_format)
    assert not arrays.back(found.input).any()
    assert not arrays.back(found.grid).any()
