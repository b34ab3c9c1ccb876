"""Effective receptive fields: the theoretical ones, published shapes, PyTorch's autograd; moments and overlap."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from cudakit.fov import (
    Conv,
    SpatialTransformer,
    effective_receptive_field,
    moments,
    overlap,
    sampling_positions,
)

from .conftest import require
from .fov_problems import PLAIN, SIZES, deformable, drawn, paths


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
