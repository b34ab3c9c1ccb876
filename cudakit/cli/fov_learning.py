"""Deformable layers and a spatial transformer that learn the same task: to see a photograph as through a swirl.

The offsets of each layer are a smooth field, made from a coarse lattice by `grid_sample`; the lattices follow the
gradient of the squared difference, which `deform_conv2d_backward` and `grid_sample_backward` carry back to them. The
transformer's six numbers are learnt by `cudakit.cli.registration`. Nothing but NumPy is needed.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from cudakit.cli.learning import Adam, Floats, Stage, blur, scale_stages
from cudakit.cli.registration import IDENTITY, Transform, register, with_coverage
from cudakit.deformable import deform_conv2d, deform_conv2d_backward
from cudakit.sampling import affine_grid, grid_sample, grid_sample_backward

TURN, RADIUS = 0.8, 0.18  # radians at the middle; radius of the swirl, of the shorter side
SPACING = 20  # pixels between the points of a lattice of offsets
MARGIN = 6  # pixels at the border that are not compared
STAGES = Stage(0.4, 3, sigma=10.0), Stage(0.3, 3, sigma=5.0), Stage(0.1, 2, sigma=2.0), Stage(0.05, 2, sigma=1.0)


class Learning(NamedTuple):
    """Where the learning stands before a step: the blur, the offsets (1, 2*K*K, H, W) of each layer, the difference.

    The difference is the root of the mean square, of pixels from 0 to 1.
    """

    sigma: float
    offsets: list[Any]
    difference: float


def swirl(y: Any, x: Any, size: Sequence[int]) -> tuple[Any, Any]:
    """Return the pixel, y and x, of a photograph of that size that is to be seen at a pixel."""
    away_y, away_x = y - (size[0] - 1) / 2, x - (size[1] - 1) / 2
    angle = TURN * np.exp(-(away_y**2 + away_x**2) / (2 * (RADIUS * min(size)) ** 2))
    seen_y, seen_x = np.sin(angle) * away_x + np.cos(angle) * away_y, np.cos(angle) * away_x - np.sin(angle) * away_y
    return seen_y + (size[0] - 1) / 2, seen_x + (size[1] - 1) / 2


def swirled(photo: Any) -> Any:
    """Return a photograph (1, 3, H, W) through the swirl."""
    size = photo.shape[2:]
    y, x = np.indices(size)
    seen_y, seen_x = swirl(y, x, size)
    grid = np.stack([(2 * seen_x + 1) / size[1] - 1, (2 * seen_y + 1) / size[0] - 1], -1)
    return grid_sample(photo, grid[None].astype(photo.dtype), padding_mode="border")


def difference(found: Any, target: Any) -> float:
    """Return the root of the mean squared difference away from the border."""
    return float(np.sqrt(np.mean((found - target)[..., MARGIN:-MARGIN, MARGIN:-MARGIN] ** 2)))


def smooth(photo: Any, kernels: Sequence[int], offsets: Sequence[Any] | None = None) -> Any:
    """Return what layers with binomial kernels make of a photograph, with offsets or without."""
    return _forward(photo, kernels, offsets or _no_offsets(kernels, photo.shape[2:]))[-1]


def _no_offsets(kernels: Sequence[int], size: Sequence[int]) -> list[Any]:
    return [np.zeros((1, 2 * kernel**2, *size), np.float32) for kernel in kernels]


def _forward(photo: Any, kernels: Sequence[int], offsets: Sequence[Any]) -> list[Any]:
    """Return the photograph and the output of each layer."""
    found = [photo]
    for kernel, offset in zip(kernels, offsets, strict=True):
        found.append(deform_conv2d(found[-1], offset, _binomial(kernel), padding=kernel // 2))
    return found


def _binomial(kernel: int) -> Any:
    """Return the weights (3, 3, k, k) that blur each colour."""
    row = np.ones(1)
    for _ in range(kernel - 1):
        row = np.convolve(row, [0.5, 0.5])
    return np.einsum("oc,y,x->ocyx", np.eye(3), row, row).astype(np.float32)  # dense: faster than three groups


def learn_transform(photo: Any, target: Any, steps: int) -> Transform:
    """Return the one transform that brings a photograph nearest to the target."""
    *_, last = register(with_coverage(photo, np), with_coverage(target, np), steps, np)
    return last.theta


def learn_offsets(photo: Any, target: Any, kernels: Sequence[int], steps: int) -> Iterator[Learning]:
    """Learn the offsets that make of the photograph what plain layers make of the target, from blurred to sharp.

    Yields
    ------
    Learning
        Before each step, and once at the end.
    """
    size = photo.shape[2:]
    lattice = tuple(side // SPACING + 2 for side in size)
    places = affine_grid(IDENTITY[None].astype(np.float32), (1, 1, *size), True)
    knots = [np.zeros((1, 2 * kernel**2, *lattice)) for kernel in kernels]
    for stage in scale_stages(STAGES, steps):
        seen, goal = (np.ascontiguousarray(blur(x, stage.sigma, np), np.float32) for x in (photo, target))
        wanted, adams = smooth(goal, kernels), [Adam(stage.rate, stage.steps) for _ in knots]
        for _ in range(stage.steps):
            offsets = _fields(knots, places)
            found = _forward(seen, kernels, offsets)
            yield Learning(stage.sigma, offsets, difference(found[-1], wanted))
            by_knots = map(_by_knots, _gradients(found, wanted, kernels, offsets), knots, repeat(places))
            knots = [adam.step(knot, gradient) for adam, knot, gradient in zip(adams, knots, by_knots, strict=True)]
    offsets = _fields(knots, places)
    yield Learning(0.0, offsets, difference(smooth(photo, kernels, offsets), smooth(target, kernels)))


def _fields(knots: Sequence[Floats], places: Any) -> list[Any]:
    """Return the smooth fields (1, 2*K*K, H, W) through the points of lattices."""
    return [grid_sample(knot.astype(np.float32), places, align_corners=True) for knot in knots]


def _by_knots(gradient: Any, knots: Floats, places: Any) -> Floats:
    """Return the gradient by the points of a lattice from that by the field which `_fields` makes of it."""
    gradients = grid_sample_backward(gradient, knots.astype(np.float32), places, align_corners=True, needs=("input",))
    by_knots: Floats = gradients.input.astype(np.float64)
    return by_knots


def _gradients(found: list[Any], wanted: Any, kernels: Sequence[int], offsets: Sequence[Any]) -> list[Any]:
    """Return the gradients of the mean squared difference by the offsets of each layer."""
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    gradient = np.zeros_like(wanted)
    gradient[inner] = 2 * (found[-1] - wanted)[inner] / wanted[inner].size
    by_offset = []
    for kernel, offset, x in zip(kernels[::-1], offsets[::-1], found[-2::-1], strict=True):
        options: dict[str, Any] = {"padding": kernel // 2, "needs": ("input", "offset")}
        back = deform_conv2d_backward(gradient, x, offset, _binomial(kernel), **options)
        by_offset.append(back.offset)
        gradient = back.input
    return by_offset[::-1]
