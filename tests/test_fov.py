"""Where units look: closed forms, paths counted one by one, and the NumPy reference."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

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

from .fov_problems import PLAIN, SIZES, affine, deformable, drawn, each, oracle, paths


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


def test_fractions_of_a_path_are_exact() -> None:
    offset = np.full((1, 1, 9), 0.25)
    layers = [Conv(1), DeformConv(offset, 1), DeformConv(offset, 1)]
    _, weights = sampling_positions(layers, (9,), (2,))
    assert [Fraction(w) for w in weights] == [Fraction(9, 16), Fraction(6, 16), Fraction(1, 16)]
