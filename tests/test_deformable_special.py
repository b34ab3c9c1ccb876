"""Coordinates that are no ordinary numbers, pixels outside every footprint, knots, and offsets of zero."""

from math import prod
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import reference

from .conftest import Arrays, require
from .deformable_problems import GEOMETRIES, OPERATORS, Geometry, Problem, call, check, draw
from .tolerances import TOLERANCES, Floats, assert_close, rounded

EVERY_OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
ANY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
PLAIN = {1: Geometry((9,), (3,), padding=1), 2: GEOMETRIES["2-D"], 3: GEOMETRIES["3-D"]}
LARGEST = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": 3.4e38, "float64": 1.7e308}
FAR = [-4e9, -3e9, -(2.0**31), -1e4, 1e4, 2.0**31 - 128, 2.0**31, 2.0**32, 1e19, -1e19, 1e30, -1e30]


def draw_special(rng: np.random.Generator, geometry: Geometry, dtype: str, share: float) -> Problem:
    """Draw a problem in which a share of the offsets are no ordinary numbers, or far away."""
    problem = draw(rng, geometry, dtype)
    special = [np.nan, np.inf, -np.inf, LARGEST[dtype], -LARGEST[dtype]]
    with np.errstate(over="ignore"):
        values = rounded(special + (FAR if dtype != "float16" else []), dtype)
    chosen = rng.choice(values, problem.offset.shape)
    return problem._replace(offset=np.where(rng.random(chosen.shape) < share, chosen, problem.offset))


@EVERY_OPERATOR
@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("n", PLAIN)
def test_special_coordinates(arrays: Arrays, rng: np.random.Generator, n: int, channels: int, operator: str) -> None:
    made = draw_special(rng, PLAIN[n]._replace(channels=channels), "float32", 0.2).on(arrays)
    check(arrays, operator, made)
    assert all(np.isfinite(arrays.back(result)).all() for result in call(operator, made).values())


@EVERY_OPERATOR
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_special_coordinates_of_other_dtypes(
    arrays: Arrays, rng: np.random.Generator, dtype: str, operator: str
) -> None:
    made = draw_special(rng, GEOMETRIES["2-D of all sorts"], dtype, 0.2).on(arrays, dtype)
    check(arrays, operator, made, dtype)
    assert all(np.isfinite(arrays.back(result)).all() for result in call(operator, made).values())


@EVERY_OPERATOR
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf, 12.0, -12.0, 3e9, -1e30])
@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("n", PLAIN)
def test_samples_outside_read_nothing(
    arrays: Arrays, rng: np.random.Generator, n: int, channels: int, outside: float, operator: str
) -> None:
    problem = draw(rng, PLAIN[n]._replace(channels=channels, biased=False))
    offset = problem.offset.reshape(2, problem.geometry.taps, n, -1)
    offset[:, :, rng.integers(n)] = outside  # one coordinate is enough
    made = problem._replace(input=np.full_like(problem.input, np.nan)).on(arrays)
    results = call(operator, made)
    assert not any(np.any(arrays.back(result)) for result in results.values() if result is not None)


def footprints(geometry: Geometry, offset: Floats) -> Any:
    """Return which pixels of the images (N, C, S...) any sample reads with a weight that is not 0."""
    batch, channels, n = geometry.batch, geometry.channels, geometry.n
    columns = np.ones((batch, channels * geometry.taps, prod(geometry.out)))
    weights = reference.deform_col2im(columns, offset, geometry.sizes, geometry.kernel, *geometry.places)
    assert weights.shape == (batch, channels, *geometry.sizes[:n])
    return weights > 0


@EVERY_OPERATOR
@pytest.mark.parametrize("pixel", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("n", PLAIN)
def test_pixels_in_no_footprint_do_not_show(
    arrays: Arrays, rng: np.random.Generator, n: int, channels: int, pixel: float, operator: str
) -> None:
    # Large strides leave gaps between the footprints, and some of those hang over the edges.
    sizes = (11, 12, 10)[:n]
    problem = draw(rng, Geometry(sizes, (1,) * n, stride=3, channels=channels), reach=1.0)
    read = footprints(problem.geometry, problem.offset)
    assert 0.05 < np.mean(read) < 0.95
    made = problem._replace(input=np.where(read, problem.input, pixel)).on(arrays)
    check(arrays, operator, made._replace(input=arrays.make(np.where(read, problem.input, 0))))
    for name, result in call(operator, made).items():
        assert np.isfinite(arrays.back(result)).all(), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_corners_of_weight_zero_count_in_no_gradient(
    arrays: Arrays, dtype: str, channels: int, rng: np.random.Generator
) -> None:
    """Every other pixel is a NaN, and samples are at the pixels between; only slopes see what is beside them."""
    image = rounded(rng.normal(size=(1, channels, 4, 4)), dtype)
    image[..., 1::2] = image[:, :, 1::2] = np.nan
    made = [arrays.make(a, dtype) for a in (np.ones((1, 2, 2, 2)), image, np.zeros((1, 2, 2, 2)))]
    kernel, mask = (arrays.make(np.ones(shape), dtype) for shape in ((2, channels, 1, 1), (1, 1, 2, 2)))
    found = cudakit.deform_conv2d_backward(*made, kernel, stride=2, mask=mask)
    seen = image[..., ::2, ::2]
    sums = np.broadcast_to(seen.sum((2, 3))[0], (2, channels))
    assert_close(arrays.back(found.weight)[..., 0, 0], sums, dtype, scale=10)
    assert_close(arrays.back(found.mask)[:, 0], 2 * seen.sum(1), dtype, scale=10)
    (alone,) = (
        x
        for x in cudakit.deform_conv2d_backward(*made, kernel, stride=2, mask=mask, needs=("weight",))
        if x is not None
    )
    np.testing.assert_array_equal(arrays.back(alone), arrays.back(found.weight))


def test_empty_arrays_of_any_strides() -> None:
    x, offset = np.zeros((2, 4, 10, 10), np.float32)[:0, :, ::2, ::2], np.zeros((0, 18, 5, 5), np.float32)
    kernel = np.ones((3, 4, 3, 3), np.float32)
    assert cudakit.deform_conv2d(x, offset, kernel, padding=1).shape == (0, 3, 5, 5)
    found = cudakit.deform_conv2d_backward(
        np.zeros((2, 3, 10, 10), np.float32)[:0, :, ::2, ::2], x, offset, kernel, padding=1
    )
    np.testing.assert_array_equal(found.weight, np.zeros_like(kernel))
    assert cudakit.deform_im2col(x, offset, 3, padding=1).shape == (0, 36, 25)
    grid = np.zeros((0, 5, 5, 2), np.float32)
    assert cudakit.grid_sample_backward(x, x, grid).input.shape == x.shape


@pytest.mark.parametrize("large", [2**31 - 1, 2**32, 2**40])
def test_large_steps(large: int) -> None:
    line, offset = np.array([[[1.0, 2.0, 3.0, 4.0]]], np.float32), np.zeros((1, 1, 3), np.float32)
    found = cudakit.deform_im2col(line, offset, 1, stride=large, padding=large)
    np.testing.assert_array_equal(found, [[[0, 1, 0]]])
    with pytest.raises(ValueError, match=r"deform_im2col: stride must be .* below 2\*\*60, got 1152921504606846976"):
        cudakit.deform_im2col(line, offset[..., :1], 1, stride=2**60)
    with pytest.raises(ValueError, match=r"deform_im2col: stride must be .* below .*, got int of too many digits"):
        cudakit.deform_im2col(line, offset[..., :1], 1, stride=10**5000)


def test_sizes_of_any_integers() -> None:
    columns, offset = np.ones((1, 36, 25), np.float32), np.zeros((1, 18, 5, 5), np.float32)
    expected = cudakit.deform_col2im(columns, offset, (5, 5), 3, padding=1)
    for size in (np.int64(5), np.array([5, 5]), [5, 5]):
        np.testing.assert_array_equal(cudakit.deform_col2im(columns, offset, size, 3, padding=1), expected)


@EVERY_OPERATOR
@pytest.mark.parametrize("n", PLAIN)
def test_knots_have_the_right_hand_slope(arrays: Arrays, rng: np.random.Generator, n: int, operator: str) -> None:
    problem = draw(rng, PLAIN[n])
    halves = rng.integers(-6, 7, problem.offset.shape) / 2
    check(arrays, operator, problem._replace(offset=halves).on(arrays))


@pytest.mark.parametrize(
    ("position", "value", "slope"), [(-2, 0, 0), (-1, 0, 1), (0, 1, 1), (1, 2, 2), (2, 4, 4), (3, 8, -8), (4, 0, 0)]
)
def test_values_and_slopes_at_the_knots(arrays: Arrays, position: float, value: float, slope: float) -> None:
    x, offset = arrays.make([[[1, 2, 4, 8]]]), arrays.make([[[position]]])
    assert arrays.back(cudakit.deform_im2col(x, offset, (1,), stride=4)).item() == value
    gradients = cudakit.deform_im2col_backward(arrays.make([[[1]]]), x, offset, (1,), stride=4)
    assert arrays.back(gradients.offset).item() == slope


def unfold(image: Floats, geometry: Geometry) -> Floats:
    """Return the columns of an ordinary convolution: windows of the padded image."""
    n, g = geometry.n, geometry
    padding = np.broadcast_to(g.padding, n) if np.size(g.padding) < 2 * n else np.asarray(g.padding)
    ends = padding if len(padding) == n else padding[n:]
    padded = np.pad(image, [(0, 0), (0, 0), *zip(padding[:n], ends, strict=True)])
    strides, dilations = np.broadcast_to(g.stride, n), np.broadcast_to(g.dilation, n)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, g.kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + n)))
    places = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    chosen = windows[(slice(None), slice(None), *places, *taps)]
    order = (0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
    return chosen.transpose(order).reshape(len(image), -1, prod(g.out))


@ANY_GEOMETRY
@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_zero_offsets_are_unfold(
    arrays: Arrays, rng: np.random.Generator, dtype: str, channels: int, geometry: Geometry
) -> None:
    if dtype != "float32" and geometry.n != 2:
        pytest.skip("2-D stands for the others")
    problem = draw(rng, geometry._replace(channels=channels, masked=False), dtype)
    made = problem._replace(offset=np.zeros_like(problem.offset)).on(arrays, dtype)
    columns = arrays.back(call("deform_im2col", made)["columns"])
    assert (columns == unfold(problem.input, problem.geometry)).all()


@ANY_GEOMETRY
@pytest.mark.parametrize("channels", [4, 32])
def test_zero_offsets_are_fold(arrays: Arrays, rng: np.random.Generator, channels: int, geometry: Geometry) -> None:
    # fold is the transpose of unfold; sums of small integers are exact in every order
    problem = draw(rng, geometry._replace(channels=channels, masked=False))
    columns = rng.integers(-8, 9, problem.columns.shape).astype(np.float64)
    made = problem._replace(offset=np.zeros_like(problem.offset), columns=columns).on(arrays)
    image = arrays.back(call("deform_col2im", made)["input"])
    sources = np.arange(1, 1 + problem.input.size).reshape(problem.input.shape)
    pixels = unfold(sources.astype(np.float64), problem.geometry).astype(np.int64)  # 0: the padding
    expected = np.bincount(pixels.ravel(), columns.ravel(), minlength=1 + sources.size)[1:]
    assert (image.ravel() == expected).all()


@pytest.mark.usefixtures("torch_device")
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name.startswith("2-D") and "asym" not in name])
def test_zero_offsets_are_torchs_unfold_and_fold(rng: np.random.Generator, name: str) -> None:
    torch = require("torch")
    problem = draw(rng, GEOMETRIES[name]._replace(masked=False))
    (stride, padding, dilation), sizes = problem.geometry.places, problem.geometry.sizes
    tensors = problem.map(lambda _, array: torch.tensor(array, dtype=torch.float32))
    tensors = tensors._replace(offset=torch.zeros_like(tensors.offset))
    arguments = (problem.geometry.kernel, dilation, padding, stride)
    unfolded = torch.nn.functional.unfold(tensors.input, *arguments)
    assert torch.equal(call("deform_im2col", tensors)["columns"], unfolded)
    folded = torch.nn.functional.fold(tensors.columns, sizes, *arguments)
    torch.testing.assert_close(call("deform_col2im", tensors)["input"], folded)


@EVERY_OPERATOR
def test_a_mask_of_ones_is_no_mask(arrays: Arrays, rng: np.random.Generator, operator: str) -> None:
    made = draw(rng, GEOMETRIES["2-D"]._replace(masked=False)).on(arrays)
    geometry = made.geometry
    ones = arrays.make(np.ones((geometry.batch, geometry.taps, *geometry.out)))
    masked = call(operator, made._replace(mask=ones))
    for name, values in call(operator, made).items():
        if values is not None:
            assert_close(arrays.back(masked[name]), arrays.back(values), "float32")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_images_that_are_parts_of_others(rng: np.random.Generator, dtype: str, last: bool) -> None:
    """Groups of channels are then no images of a batch, whose steps are all the same."""
    whole = rng.standard_normal((3, 14, 7, 6)).astype(dtype)  # and what is made of contiguous ones is checked elsewhere
    part = np.moveaxis(np.ascontiguousarray(np.moveaxis(whole, 1, -1)), -1, 1)[:, 1:13] if last else whole[:, 1:13]
    offset = rng.standard_normal((3, 4 * 9 * 2, 7, 6)).astype(dtype)
    weight = rng.standard_normal((8, 6, 3, 3)).astype(dtype)
    found = cudakit.deform_conv2d(part, offset, weight, padding=1)
    assert np.array_equal(found, cudakit.deform_conv2d(part.copy(order="C"), offset, weight, padding=1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("operator", ["deform_im2col_backward", "deform_conv_backward"])
def test_outside_no_gradient_and_no_mask_counts(
    arrays: Arrays, rng: np.random.Generator, operator: str, bad: float, masked: bool
) -> None:
    problem = draw(rng, GEOMETRIES["2-D"])
    assert problem.mask is not None
    if masked:
        problem = problem._replace(mask=np.full_like(problem.mask, bad))
    offset = np.full_like(problem.offset, np.nan)
    offset[:, :2] = 1e6
    columns, output = np.full_like(problem.columns, bad), np.full_like(problem.output, bad)
    made = problem._replace(offset=offset, columns=columns, output=output).on(arrays)
    found = call(operator, made)
    for name in ("input", "offset", "mask"):
        assert not arrays.back(found[name]).any(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dilation", [2**24 + 1, 2**31 + 1, 2**53 + 1])
def test_dilations_beyond_the_digits_of_a_coordinate(arrays: Arrays, dtype: str, dilation: int) -> None:
    """The padding leads back, so that places are small whole numbers and a half."""
    x, offset = arrays.make(np.arange(1.0, 6).reshape(1, 1, 5), dtype), arrays.make(np.full((1, 2, 5), 0.5), dtype)
    moves = {"dilation": dilation, "padding": (dilation, 0)}
    columns = cudakit.deform_im2col(x, offset, 2, **moves)
    assert arrays.back(columns).tolist() == [[[0, 0, 0, 0, 0], [1.5, 2.5, 3.5, 4.5, 2.5]]]
    image = cudakit.deform_col2im(arrays.make(np.ones((1, 2, 5)), dtype), offset, (5,), 2, **moves)
    assert arrays.back(image).tolist() == [[[0.5, 1, 1, 1, 1]]]


@pytest.mark.parametrize("offset", [0.0, 0.25, 1 - 2.0**-24, -(2.0**-30)])
def test_offsets_keep_their_digits_far_from_the_beginning(arrays: Arrays, offset: float) -> None:
    """Positions would lose them as float32 numbers; what rounds up to a pixel is that pixel, and has its slope."""
    size, stride = 2**24 + 10, 2**21 + 1
    line = (np.arange(size) % 997).reshape(1, 1, size)
    places = np.arange(9) * stride
    x, offsets = arrays.make(line), arrays.make(np.full((1, 1, 9), offset))
    columns = arrays.back(cudakit.deform_im2col(x, offsets, 1, stride)).ravel()
    ones = arrays.make(np.ones((1, 1, 9)))
    slopes = arrays.back(cudakit.deform_im2col_backward(ones, x, offsets, 1, stride, needs=("offset",)).offset).ravel()
    first, second = (line[0, 0, places + shift] for shift in (0, 1))
    np.testing.assert_allclose(columns, first + max(offset, 0) * (second - first), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(slopes, second - first)
