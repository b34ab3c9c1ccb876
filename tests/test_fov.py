"""Fields of view: closed forms, paths counted one by one, the NumPy reference, and PyTorch's autograd."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from cudakit import reference
from cudakit.fov import (
    Conv,
    DeformConv,
    SpatialTransformer,
    effective_receptive_field,
    moments,
    overlap,
    sampling_positions,
)

from .conftest import require

Floats = NDArray[np.float64]
Numbers = int | tuple[int, ...]

SIZES = {1: (23,), 2: (17, 19), 3: (9, 10, 11)}
# (n, layers, unit): strides, dilation, padding of both kinds, even kernels, units at the border
PLAIN = [
    (1, (Conv(3), Conv(3), Conv(3)), (8,)),
    (1, (Conv(2, stride=2, padding=(1, 0)), Conv(3, dilation=2)), (5,)),
    (2, (Conv(padding=1),) * 3, (8, 9)),
    (2, (Conv(padding=1),) * 3, (0, 18)),
    (2, (Conv(padding=2, dilation=2),) * 2, (5, 5)),
    (2, (Conv((3, 2), stride=(2, 1), padding=(1, 0, 0, 1)), Conv(1, stride=2), Conv((1, 3))), (3, 4)),
    (3, (Conv(3, padding=1), Conv((1, 2, 3), stride=2)), (4, 2, 1)),
]


def each(value: Numbers, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else value[:n]


def paths(layers: Sequence[Conv], size: Sequence[int], at: Sequence[int]) -> Counter[tuple[int, ...]]:
    """Count the paths from a unit to each pixel of the input, one by one, exactly."""
    sizes = [tuple(size)]
    for layer in layers:
        shape = each(layer.kernel_size, len(size))
        sizes.append(reference.deform_output_size(sizes[-1], shape, layer.stride, layer.padding, layer.dilation))
    found = Counter({tuple(at): 1})
    for layer, below in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
        n = len(below)
        stride, padding, dilation = (each(value, n) for value in (layer.stride, layer.padding, layer.dilation))
        count: Counter[tuple[int, ...]] = Counter()
        for (unit, times), tap in itertools.product(
            found.items(), itertools.product(*map(range, each(layer.kernel_size, n)))
        ):
            pixel = tuple(unit[d] * stride[d] - padding[d] + tap[d] * dilation[d] for d in range(n))
            if all(0 <= p < s for p, s in zip(pixel, below, strict=True)):
                count[pixel] += times
        found = count
    return found


def drawn(positions: Floats, weights: Floats, size: Sequence[int]) -> Floats:
    """Draw positions into an image, with linear weights."""
    image = np.zeros([s + 1 for s in size])
    cell = np.floor(positions).astype(int)
    for corner in itertools.product((0, 1), repeat=len(size)):
        share = np.where(corner, positions - cell, 1 - positions + cell).prod(1)
        np.add.at(image, tuple((cell + corner).T), share * weights)
    return image[tuple(slice(s) for s in size)]


def deformable(
    rng: np.random.Generator, size: Sequence[int], spread: float, *, groups: int = 1, mask: bool = False, **moves: Any
) -> DeformConv:
    """Draw offsets, and a mask, for an input of a size."""
    n, kernel = len(size), moves.get("kernel_size", (3,) * len(size))
    window = (moves.get("stride", 1), moves.get("padding", 0), moves.get("dilation", 1))
    out = reference.deform_output_size(size, kernel, *window)
    taps = groups * int(np.prod(kernel))
    offset = spread * rng.normal(size=(1, taps * n, *out))
    factors = rng.uniform(0.2, 1, (1, taps, *out)) if mask else None
    return DeformConv(offset, kernel, *window, factors)


@pytest.mark.parametrize(("n", "layers", "at"), PLAIN)
def test_plain_positions_are_the_paths(n: int, layers: tuple[Conv, ...], at: tuple[int, ...]) -> None:
    expected = paths(layers, SIZES[n], at)
    positions, weights = sampling_positions(layers, SIZES[n], at)
    assert {tuple(map(int, p)): int(w) for p, w in zip(positions, weights, strict=True)} == expected
    assert positions.tolist() == sorted(map(list, expected))
    assert weights.tolist() == [expected[tuple(map(int, p))] for p in positions]


def test_plain_stack_has_the_binomial_field() -> None:
    positions, weights = sampling_positions([Conv(2)] * 6, (40,), (11,))
    np.testing.assert_array_equal(positions[:, 0], np.arange(11, 18))
    np.testing.assert_array_equal(weights, [1, 6, 15, 20, 15, 6, 1])


def oracle(layers: Sequence[Any], size: Sequence[int], at: Sequence[int]) -> Floats:
    """Carry weights of 1 from a unit to the input, through the whole of every layer, with the NumPy reference."""
    sizes = [tuple(size)]
    for layer in layers:
        space = layer.grid.shape[1:-1] if isinstance(layer, SpatialTransformer) else layer.offset.shape[2:]
        sizes.append(space)
    gradient = np.zeros((1, 1, *sizes[-1]))
    gradient[(0, 0, *at)] = 1
    for layer, below in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
        if isinstance(layer, SpatialTransformer):
            options = (layer.mode, layer.padding_mode, layer.align_corners)
            gradient = reference.grid_sample_backward(gradient, np.zeros((1, 1, *below)), layer.grid, *options)[0]
            continue
        groups = layer.offset.shape[1] // (len(below) * int(np.prod(layer.kernel_size)))
        kernel = np.full((1, groups, *layer.kernel_size), 1 / groups)
        moves = (None, layer.stride, layer.padding, layer.dilation, layer.mask)
        zeros = np.zeros((1, groups, *below))
        found = reference.deform_conv_backward(gradient, zeros, layer.offset, kernel, *moves).input
        gradient = found.sum(1, keepdims=True)
    return gradient[0, 0]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.7, 4.0])
def test_deformable_positions_carry_what_the_reference_carries(n: int, spread: float, rng: np.random.Generator) -> None:
    size = SIZES[n]
    first = deformable(rng, size, spread, groups=2, mask=True, padding=1)
    second = deformable(rng, first.offset.shape[2:], spread, stride=2, padding=(0, 2)[:1] * n + (1,) * n, dilation=2)
    third = deformable(rng, second.offset.shape[2:], spread, kernel_size=(2,) * n, padding=1, mask=True)
    layers = (first, second, third)
    for at in ((0,) * n, tuple(s // 2 for s in third.offset.shape[2:])):
        positions, weights = sampling_positions(layers, size, at)
        np.testing.assert_allclose(drawn(positions, weights, size), oracle(layers, size, at), atol=1e-9)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_transformed_positions_carry_what_the_reference_carries(
    n: int, padding_mode: str, align_corners: bool, rng: np.random.Generator
) -> None:
    size, options = SIZES[n], ("bilinear", padding_mode, align_corners)
    bottom = SpatialTransformer(None, rng.uniform(-1.3, 1.3, (1, *size, n)), *options)
    middle = deformable(rng, size, 1.0, padding=1)
    top = SpatialTransformer(None, rng.uniform(-1.3, 1.3, (1, *(3, 4, 5)[:n], n)), *options)
    layers = (bottom, middle, top)
    for at in itertools.product(*map(range, (3, 2, 1)[:n])):
        positions, weights = sampling_positions(layers, size, at)
        np.testing.assert_allclose(drawn(positions, weights, size), oracle(layers, size, at), atol=1e-9)


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_other_modes_reach_what_the_reference_reaches(mode: str, rng: np.random.Generator) -> None:
    size = SIZES[2]
    warp = SpatialTransformer(None, rng.uniform(-0.9, 0.9, (1, *size, 2)), mode)
    layers = (deformable(rng, size, 1.0, padding=1), warp)
    for at in itertools.product(range(3), range(3)):
        field = effective_receptive_field(layers, size, at, nonlinearity="none", repeats=1)
        np.testing.assert_array_equal(field > 1e-20, np.abs(oracle(layers, size, at)) > 1e-10)


@pytest.mark.parametrize(("n", "layers", "at"), PLAIN)
@pytest.mark.parametrize("masked", [False, True])
def test_zero_offsets_are_no_offsets(n: int, layers: tuple[Conv, ...], at: tuple[int, ...], masked: bool) -> None:
    size, same = SIZES[n], []
    for layer in layers:
        kernel = each(layer.kernel_size, n)
        size = reference.deform_output_size(size, kernel, layer.stride, layer.padding, layer.dilation)
        taps = int(np.prod(kernel))
        mask = np.ones((1, taps, *size)) if masked else None
        moves = (layer.stride, layer.padding, layer.dilation)
        same.append(DeformConv(np.zeros((1, taps * n, *size)), layer.kernel_size, *moves, mask))
    for found, expected in zip(
        sampling_positions(same, SIZES[n], at), sampling_positions(layers, SIZES[n], at), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        effective_receptive_field(same, SIZES[n], at), effective_receptive_field(layers, SIZES[n], at)
    )


def affine(n: int, size: Sequence[int], shift: Sequence[float]) -> Floats:
    """Return the transform that moves where units look by some pixels, x first."""
    return np.column_stack([np.eye(n), 2 * np.array(shift) / np.array(size[::-1])])[None]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_translation_moves_the_field_by_its_pixels(n: int, shift: int) -> None:
    size, convolutions = {1: (32,), 2: (16, 32), 3: (8, 9, 16)}[n], [Conv(padding=1)] * 2
    at, moved = (4,) * n, (*(4,) * (n - 1), 4 + shift)
    layers = [SpatialTransformer(affine(n, size, (shift, *(0,) * (n - 1)))), *convolutions]
    positions, weights = sampling_positions(layers, size, at)
    expected = sampling_positions(convolutions, size, moved)
    np.testing.assert_allclose(positions, expected[0], atol=1e-9)
    np.testing.assert_allclose(weights, expected[1], atol=1e-9)
    options: dict[str, Any] = {"nonlinearity": "none", "repeats": 3}
    field = effective_receptive_field(layers, size, at, **options)
    np.testing.assert_allclose(field, effective_receptive_field(convolutions, size, moved, **options), atol=1e-9)


def test_offsets_move_the_field_by_their_pixels() -> None:
    offset = np.zeros((1, 18, 20, 20))
    offset[:, 1::2] = 3
    layers = [DeformConv(offset, padding=1), Conv(padding=1)]
    positions, weights = sampling_positions(layers, (20, 20), (9, 9))
    expected = sampling_positions([Conv(padding=1)] * 2, (20, 20), (9, 12))
    np.testing.assert_array_equal(positions, expected[0])
    np.testing.assert_array_equal(weights, expected[1])


def test_a_half_pixel_splits_in_the_middle_of_a_stack() -> None:
    half = np.full((1, 1, 9), 0.5)
    layers = [Conv(1), DeformConv(half, 1)]
    positions, weights = sampling_positions(layers, (9,), (4,))
    assert (positions.tolist(), weights.tolist()) == ([[4], [5]], [0.5, 0.5])
    positions, weights = sampling_positions(layers[::-1], (9,), (4,))
    assert (positions.tolist(), weights.tolist()) == ([[4.5]], [1])
    positions, weights = sampling_positions(layers[::-1], (9,), (8,))  # half of the sample lies outside
    assert (positions.tolist(), weights.tolist()) == ([[8]], [0.5])


def test_groups_and_masks_share_the_weight() -> None:
    offset = np.array([[[0.0], [2.0]]])  # two groups of one tap
    layer = DeformConv(offset, 1, stride=9, mask=np.array([[[1.0], [-0.5]]]))
    positions, weights = sampling_positions([layer], (9,), (0,))
    assert (positions.tolist(), weights.tolist()) == ([[0], [2]], [0.5, 0.25])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 30.0, -1.0])
def test_a_unit_that_looks_outside_sees_nothing(bad: float) -> None:
    layers = [DeformConv(np.full((1, 1, 9), bad), 1), Conv(1)]
    positions, weights = sampling_positions(layers, (9,), (0,))
    assert (positions.shape, weights.shape) == ((0, 1), (0,))
    field = effective_receptive_field(layers, (9,), (0,))
    np.testing.assert_array_equal(field, np.zeros(9))
    assert moments(field).mass == moments(weights, positions).mass == 0
    assert np.isnan(moments(field).size)
    assert overlap(field, np.ones(9)) == 0


@pytest.mark.parametrize("nonlinearity", ["none", "relu"])
@pytest.mark.parametrize(("n", "layers", "at"), PLAIN)
def test_plain_field_lies_inside_the_theoretical_one(
    n: int, layers: tuple[Conv, ...], at: tuple[int, ...], nonlinearity: str
) -> None:
    field = effective_receptive_field(layers, SIZES[n], at, nonlinearity=nonlinearity)
    assert {tuple(pixel) for pixel in np.argwhere(field).tolist()} == set(paths(layers, SIZES[n], at))


def test_field_without_relu_has_the_expected_shape() -> None:
    layers, size, at = [Conv(padding=1)] * 2, (9, 9), (4, 4)
    field = effective_receptive_field(layers, size, at, nonlinearity="none", repeats=3000, channels=4)
    expected = np.zeros(size)
    for pixel, count in paths(layers, size, at).items():
        expected[pixel] = count / 81
    np.testing.assert_allclose(field, expected, atol=0.01)


def test_field_of_ones_is_what_the_positions_carry(rng: np.random.Generator) -> None:
    size = SIZES[2]
    warp = SpatialTransformer(np.array([[[0.7, -0.4, 0.1], [0.3, 0.8, -0.1]]]))
    layers = [deformable(rng, size, 2.0, groups=3, mask=True, padding=1), warp, Conv(padding=1)]
    for at in ((0, 0), (8, 9), (16, 18)):
        field = effective_receptive_field(layers, size, at, weights="ones")
        np.testing.assert_allclose(field, drawn(*sampling_positions(layers, size, at), size), atol=1e-9)
    plain = effective_receptive_field([Conv(2)] * 4, (9,), (2,), weights="ones")
    np.testing.assert_array_equal(plain, [0, 0, 1, 4, 6, 4, 1, 0, 0])


def test_field_moves_with_its_unit() -> None:
    layers = [Conv(padding=1), Conv(padding=2, dilation=2)]
    here, there = (effective_receptive_field(layers, (40, 50), at) for at in ((9, 9), (25, 38)))
    np.testing.assert_array_equal(np.roll(here, (16, 29), (0, 1)), there)
    assert moments(there).mass == pytest.approx(moments(here).mass)


def test_seed_says_what_is_drawn() -> None:
    fields = [effective_receptive_field([Conv(), Conv()], (9, 9), (2, 2), seed=seed, repeats=2) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fields[0], fields[1])
    assert np.abs(fields[0] - fields[2]).max() > 1e-3


def torch_layer(torch: Any, layer: Any, x: Any, weight: Any) -> Any:
    """Run a layer by PyTorch's own functions; a deformable convolution by sampling for one tap after the other."""
    functional = torch.nn.functional
    if isinstance(layer, Conv):
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, SpatialTransformer):
        grid = functional.affine_grid(torch.tensor(layer.theta), list(x.shape), layer.align_corners)
        return functional.grid_sample(x, grid, layer.mode, layer.padding_mode, layer.align_corners)
    height, width = x.shape[2:]
    out = layer.offset.shape[2:]
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in out), indexing="ij")
    total = 0
    for k, (i, j) in enumerate(itertools.product(range(3), range(3))):
        dy, dx = torch.tensor(layer.offset[0, 2 * k : 2 * k + 2])
        y = rows * layer.stride - layer.padding + i * layer.dilation + dy
        x_ = columns * layer.stride - layer.padding + j * layer.dilation + dx
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1)[None]
        sampled = functional.grid_sample(x, grid, align_corners=False) * torch.tensor(layer.mask[0, k])
        total = total + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], sampled)
    return total


@pytest.mark.parametrize("nonlinearity", ["none", "relu"])
@pytest.mark.parametrize("kind", ["plain", "deformable", "transformer"])
def test_field_is_what_autograd_finds(kind: str, nonlinearity: str, rng: np.random.Generator) -> None:
    torch = require("torch")
    size, at, channels, repeats = (7, 7), (3, 3), 2, 3
    theta = np.array([[[0.8, -0.3, 0.1], [0.2, 0.9, -0.2]]])
    layers = {
        "plain": [Conv(padding=1)] * 3,
        "deformable": [deformable(rng, size, 1.5, mask=True, padding=2, dilation=2) for _ in range(3)],
        "transformer": [Conv(padding=1), SpatialTransformer(theta), Conv(padding=1), Conv(padding=2, dilation=2)],
    }[kind]
    options: dict[str, Any] = {"channels": channels, "repeats": repeats, "nonlinearity": nonlinearity, "seed": 5}
    field = effective_receptive_field(layers, size, at, **options)
    draw, squares = np.random.default_rng(5), np.zeros(size)
    reached = np.argwhere(field)
    assert (reached.min(0).tolist(), reached.max(0).tolist()) == ([0, 0], [6, 6])  # so the whole input is drawn
    for _ in range(repeats):
        weights = []
        for i, layer in enumerate(layers):
            if not isinstance(layer, SpatialTransformer):
                gain = 2 if nonlinearity == "relu" and i < len(layers) - 1 else 1
                kernel = draw.standard_normal((channels, channels, 3, 3)) * np.sqrt(gain / (9 * channels))
            weights.append(None if isinstance(layer, SpatialTransformer) else torch.tensor(kernel))
        pixels = (
            draw.standard_normal((1, channels, *size)) if nonlinearity == "relu" else np.zeros((1, channels, *size))
        )
        x = image = torch.tensor(pixels, requires_grad=True)
        for i, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
            x = torch_layer(torch, layer, x, weight)
            if nonlinearity == "relu" and weight is not None and i < len(layers) - 1:
                x = x.relu()
        x[(0, 0, *at)].backward()
        squares += (image.grad.numpy()[0] ** 2).sum(0)
    np.testing.assert_allclose(field, squares / repeats, atol=1e-12)


def test_moments_of_an_ellipse() -> None:
    y, x = np.mgrid[:80, :100].astype(float)
    for degrees in (-60.0, 0.0, 25.0, 90.0):
        angle = np.radians(degrees)
        along = (x - 52) * np.cos(angle) - (y - 37) * np.sin(angle)  # y points down
        across = (x - 52) * np.sin(angle) + (y - 37) * np.cos(angle)
        found = moments(3 * np.exp(-(along**2) / (2 * 6**2) - across**2 / (2 * 3**2)))
        np.testing.assert_allclose(found.centre, [37, 52], atol=1e-3)
        np.testing.assert_allclose(found.axes, [6, 3], atol=1e-3)
        assert found.angle == pytest.approx(degrees, abs=1e-3)
        assert found.elongation == pytest.approx(2, abs=1e-3)
        assert found.size == pytest.approx(4 * np.sqrt(18), abs=1e-2)
        assert found.mass == pytest.approx(3 * 2 * np.pi * 18, rel=1e-6)
        assert abs(found.directions[0] @ [-np.sin(angle), np.cos(angle)]) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_moments_of_plain_stacks(n: int) -> None:
    layers = [Conv(3), Conv(5), Conv(3, dilation=3)]  # variances (k * k - 1) / 12 * dilation**2
    size, at = (24,) * n, tuple(range(2, 2 + n))
    positions, weights = sampling_positions(layers, size, at)
    found = moments(weights, positions)
    np.testing.assert_allclose(found.covariance, np.eye(n) * (2 / 3 + 2 + 6), atol=1e-9)
    np.testing.assert_allclose(found.centre, np.array(at) + 6)
    assert found.mass == pytest.approx(3**n * 5**n * 3**n)
    assert found.size == pytest.approx(4 * np.sqrt(26 / 3))


def test_angle_is_for_two_dimensions() -> None:
    with pytest.raises(ValueError, match=re.escape("Moments.angle: centre must have 2 dimensions, got 1")):
        _ = moments(np.ones(3)).angle


def test_overlap() -> None:
    first, second = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert overlap(first, 7 * first) == pytest.approx(1)
    assert overlap(first, second) == overlap(second, first) == pytest.approx(0.5)


def _alike(values: Any, kind: Any, dtype: str) -> Floats:
    assert isinstance(values, kind), type(values)
    assert str(values.dtype).endswith(dtype)
    return np.asarray(values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax", "tensorflow", "paddle", "array_api_strict"])
def test_arrays_of_every_framework(framework: str, dtype: str, rng: np.random.Generator) -> None:
    module = require(framework)
    storage = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    offset = np.round(rng.normal(size=(1, 18, 8, 8)) * 4) / 4  # exact in every dtype
    given, wide = offset.astype(storage), "float64" if dtype == "float64" else "float32"
    match framework:
        case "numpy":
            kind, array = np.ndarray, given
        case "torch":
            kind = module.Tensor
            array = module.tensor(offset, dtype=getattr(module, dtype), requires_grad=True)
        case "jax":
            kind = module.Array
            with module.enable_x64(True):
                array = module.numpy.asarray(given)
        case "tensorflow":
            kind, array = module.Tensor, module.constant(given)
        case "paddle":
            kind, array = module.Tensor, module.to_tensor(offset).astype(dtype)
        case _:
            if dtype in ("float16", "bfloat16"):
                pytest.skip("the standard has no half precision")
            kind, array = type(module.asarray(1)), module.asarray(given)
    expected = sampling_positions([DeformConv(offset, padding=1)], (8, 8), (3, 4))
    field = effective_receptive_field([DeformConv(offset, padding=1)], (8, 8), (3, 4))
    layers = [DeformConv(array, padding=1)]
    if framework == "jax":
        with module.enable_x64(True):
            found, found_field = (
                sampling_positions(layers, (8, 8), (3, 4)),
                effective_receptive_field(layers, (8, 8), (3, 4)),
            )
    else:
        found = sampling_positions(layers, (8, 8), (3, 4))
        found_field = effective_receptive_field(layers, (8, 8), (3, 4))
    for one, other in zip((*found, found_field), (*expected, field), strict=True):
        np.testing.assert_allclose(_alike(one, kind, wide), other, rtol=1e-6)
    assert moments(found_field).mass == pytest.approx(field.sum(), rel=1e-6)
    assert overlap(found_field, found_field) == pytest.approx(1)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "broadcast", "read-only"])
def test_arrays_of_any_strides(layout: str, rng: np.random.Generator) -> None:
    offset = rng.normal(size=(1, 18, 8, 8))
    given = {
        "transposed": lambda: np.ascontiguousarray(offset.T).T,
        "reversed": lambda: offset[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
        "broadcast": lambda: np.broadcast_to(offset[:, :, :1, :1], offset.shape),
        "read-only": lambda: np.frombuffer(offset.tobytes()).reshape(offset.shape),
    }[layout]()
    expected = sampling_positions([DeformConv(given.copy(), padding=1)], (8, 8), (3, 4))
    for found, wanted in zip(sampling_positions([DeformConv(given, padding=1)], (8, 8), (3, 4)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


OFFSET = np.zeros((1, 18, 8, 8), np.float32)
THETA = np.zeros((1, 2, 3), np.float32)
BAD = [
    (TypeError, "layers must be a sequence of layers, from the input to the output, got Conv", Conv(), {}),
    (ValueError, "layers must be a sequence of layers, from the input to the output, got []", [], {}),
    (TypeError, "layers[1] must be a Conv, a DeformConv or a SpatialTransformer, got str", [Conv(), "conv"], {}),
    (TypeError, "input_size must be 1, 2 or 3 positive ints, got 8", [Conv()], {"input_size": 8}),
    (ValueError, "input_size must be 1, 2 or 3 positive ints, got (8, 0)", [Conv()], {"input_size": (8, 0)}),
    (ValueError, "at must be 2 ints, a unit of the output, whose size is (6, 6), got (0, 6)", [Conv()], {"at": (0, 6)}),
    (ValueError, "at must be 2 ints, a unit of the output, whose size is (6, 6), got (3,)", [Conv()], {"at": (3,)}),
    (
        ValueError,
        "at must be 2 ints, a unit of the output, whose size is (6, 6), got (-1, 3)",
        [Conv()],
        {"at": (-1, 3)},
    ),
    (
        TypeError,
        "at must be 2 ints, a unit of the output, whose size is (6, 6), got (0.5, 3)",
        [Conv()],
        {"at": (0.5, 3)},
    ),
    (ValueError, "kernel_size of layers[0] must be a positive int or a tuple of them, got (0,)", [Conv(0)], {}),
    (ValueError, "kernel_size of layers[0] must be an int or have 2 of them, got (3, 3, 3)", [Conv((3, 3, 3))], {}),
    (
        ValueError,
        "stride of layers[1] must be a positive int or a tuple of them, got (-1,)",
        [Conv(), Conv(stride=-1)],
        {},
    ),
    (ValueError, "padding of layers[0] must be a non-negative int", [Conv(padding=-1)], {}),
    (ValueError, "input of layers[1] must be at least as large, with its padding, as the", [Conv(7), Conv(3)], {}),
    (ValueError, "offset of layers[0] must have shape (N=1, 2*G*K=18*G, 6, 6), got", [DeformConv(OFFSET)], {}),
    (TypeError, "offset of layers[0] must be an array that speaks DLPack, got list", [DeformConv([[0.0]])], {}),
    (TypeError, "offset of layers[0] must have a dtype among", [DeformConv(OFFSET.astype(int), padding=1)], {}),
    (ValueError, "mask of layers[0] must have shape (N=1, G*K=9, 8, 8)", [DeformConv(OFFSET, 3, 1, 1, 1, OFFSET)], {}),
    (ValueError, "theta of layers[0] must be given, or else grid, got neither", [SpatialTransformer()], {}),
    (ValueError, "theta of layers[0] must be given, or else grid, got both", [SpatialTransformer(THETA, THETA)], {}),
    (ValueError, "theta of layers[0] must have shape (1, 2, 3), got (2, 3)", [SpatialTransformer(THETA[0])], {}),
    (ValueError, "grid of layers[0] must have shape (1, H_out, W_out, 2)", [SpatialTransformer(None, THETA)], {}),
    (ValueError, "size of layers[0] must be 2 positive ints, got (4,)", [SpatialTransformer(THETA, size=(4,))], {}),
    (ValueError, "mode of layers[0] must be one of 'nearest',", [SpatialTransformer(THETA, mode="linear")], {}),
]


@pytest.mark.parametrize(("kind", "message", "layers", "changes"), BAD)
@pytest.mark.parametrize("function", [sampling_positions, effective_receptive_field])
def test_bad_stacks(function: Any, kind: type[Exception], message: str, layers: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(kind, match=re.escape(f"{function.__name__}: {message}")):
        function(**{"layers": layers, "input_size": (8, 8), "at": (3, 3)} | changes)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "channels must be an int of at least 1, got (0,)", {"channels": 0}),
        (TypeError, "repeats must be an int of at least 1, got (2.5,)", {"repeats": 2.5}),
        (ValueError, "seed must be an int of at least 0, got (-1,)", {"seed": -1}),
        (ValueError, "nonlinearity must be one of 'relu', 'none', got 'gelu'", {"nonlinearity": "gelu"}),
        (ValueError, "weights must be one of 'random', 'ones', got 'uniform'", {"weights": "uniform"}),
        (ValueError, "channels must be a multiple of the 2 offset groups, got 3", {"channels": 3}),
    ],
)
def test_bad_options(kind: type[Exception], message: str, options: dict[str, Any]) -> None:
    layers = [DeformConv(np.zeros((1, 36, 6, 6)))]
    with pytest.raises(kind, match=re.escape(f"effective_receptive_field: {message}")):
        effective_receptive_field(layers, (8, 8), (3, 3), **options)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "moments: weights must be an array that speaks DLPack, got list", ([1.0],)),
        (ValueError, "moments: weights must be finite and not negative, got", (np.array([1.0, -1.0]),)),
        (ValueError, "moments: weights must have 1, 2 or 3 dimensions, got shape ()", (np.array(1.0),)),
        (ValueError, "moments: positions must have shape (P, n) beside", (np.ones(3), np.ones((2, 2)))),
    ],
)
def test_bad_moments(kind: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        moments(*arguments)


def test_bad_overlap() -> None:
    with pytest.raises(ValueError, match=re.escape("overlap: second must have the shape of first, (3,), got (2,)")):
        overlap(np.ones(3), np.ones(2))


def test_fractions_of_a_path_are_exact() -> None:
    offset = np.full((1, 1, 9), 0.25)
    layers = [Conv(1), DeformConv(offset, 1), DeformConv(offset, 1)]
    _, weights = sampling_positions(layers, (9,), (2,))
    assert [Fraction(w) for w in weights] == [Fraction(9, 16), Fraction(6, 16), Fraction(1, 16)]
