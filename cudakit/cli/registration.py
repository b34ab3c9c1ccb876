"""Affine transforms, and a spatial transformer that learns one: it registers a picture onto another.

The six numbers of the transform follow the gradient of the squared difference, which `grid_sample_backward` and
`affine_grid_backward` carry back to them. Nothing but NumPy, or CuPy, is needed.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cudakit.cli.command import to_numpy
from cudakit.cli.learning import Adam, Stage, blur, scale_stages
from cudakit.sampling import affine_grid, affine_grid_backward, grid_sample, grid_sample_backward

Transform = NDArray[np.float64]  # (2, 3): maps normalised output coordinates (x, y, 1) to input coordinates

IDENTITY: Transform = np.eye(2, 3)
COLOURS = 3  # channels of a picture; one more says where it has data
FULLY_SEEN = 0.99  # coverage below which a sample has read something outside the picture
SMALLEST_SIDE = 16  # pixels of the coarsest pyramid level: less shows nothing to hold on to


class Progress(NamedTuple):
    """Where the learning stands before a step."""

    stage: Stage
    theta: Transform
    loss: float


class Outcome(NamedTuple):
    """What the learning came to: the true transform, the warped picture (1, 4, H, W), every step and its error."""

    true: Transform
    warped: Any
    steps: list[Progress]
    errors: list[float]


def placement(degrees: float, zoom: ArrayLike, shift: ArrayLike, size: tuple[int, int]) -> Transform:
    """Return the transform that turns, zooms (along x and y) and shifts a picture of `size` (H, W).

    It maps a place in the picture to where that ends up; sampling with `inverse` of it shows the picture so.
    The shift is in normalised coordinates: 1 is half the picture.
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pixels = np.diag(size[::-1]).astype(np.float64)  # a rotation is one in pixels, not in normalised coordinates
    linear = np.linalg.inv(pixels) @ turn @ np.diag(np.broadcast_to(zoom, 2)) @ pixels
    return np.column_stack([linear, np.asarray(shift, np.float64)])


def inverse(theta: Transform) -> Transform:
    """Return the transform that undoes `theta`."""
    linear = np.linalg.inv(theta[:, :2])
    return np.column_stack([linear, -linear @ theta[:, 2]])


def corner_error(theta: Transform, true: Transform, size: tuple[int, int]) -> float:
    """Return how far apart, in pixels, two transforms put the corners of the frame, at the worst of the four."""
    corners = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    x, y = (theta - true) @ corners
    return float(np.hypot(x * size[1] / 2, y * size[0] / 2).max())


def with_coverage(picture: Any, xp: Any) -> Any:
    """Add a channel of ones: after a warp it says how much of each pixel has data."""
    return xp.concatenate([picture, xp.ones_like(picture[:, :1])], 1)


def warp(picture: Any, theta: Transform, xp: Any) -> Any:
    """Return a picture (1, C, H, W) sampled through an affine transform."""
    return grid_sample(picture, affine_grid(xp.asarray(theta[None], picture.dtype), picture.shape))


def pyramid_unit(longest: int) -> int:
    """Return what the sides of a picture should be divisible by, so that its coarsest level has about 32 pixels."""
    return 1 << max(0, int(math.log2(longest / (1.5 * SMALLEST_SIDE))))


def plan_stages(size: tuple[int, int], steps: int) -> list[Stage]:
    """Return the stages, coarse to fine; most steps go to the coarse ones, which cost next to nothing."""
    factors = [1]
    while min(size) // (2 * factors[0]) >= SMALLEST_SIDE and not any(side % (2 * factors[0]) for side in size):
        factors.insert(0, 2 * factors[0])
    # Blurred pictures have one wide valley, so large rotations and shifts find their way; the rest is precision.
    blurred = Stage(0.4, 4, 2.0, factors[0])
    sharp = [Stage(0.1, 1 + (factor > 1), factor=factor) for factor in factors]
    return scale_stages([blurred, *sharp], steps)


def register(moving: Any, fixed: Any, steps: int, xp: Any) -> Iterator[Progress]:
    """Learn the transform that makes `moving` look like `fixed`, by coarse-to-fine gradient descent (Adam).

    Parameters
    ----------
    moving, fixed : array, shape (1, 4, H, W)
        Red, green, blue and coverage, of NumPy or CuPy.
    steps : int
        How many steps, over all stages.
    xp : module
        NumPy or CuPy.

    Yields
    ------
    Progress
        Before each step, and once at the end.
    """
    size = fixed.shape[2:]
    theta = IDENTITY
    for stage in plan_stages(size, steps):
        small, target = (_prepare(picture, stage, xp) for picture in (moving, fixed))
        pixel = 2 * stage.factor / max(size)  # in normalised coordinates
        adam = Adam(stage.rate * pixel, stage.steps)
        for _ in range(stage.steps):
            loss, gradient = _loss_and_gradient(theta, small, target, xp)
            yield Progress(stage, theta, loss)
            theta = adam.step(theta, gradient)
    yield Progress(stage, theta, _loss_and_gradient(theta, small, target, xp)[0])


def _loss_and_gradient(theta: Transform, moving: Any, fixed: Any, xp: Any) -> tuple[float, Transform]:
    """Return the mean squared difference where `moving` has data, and its gradient by `theta`."""
    grid = affine_grid(xp.asarray(theta[None], moving.dtype), moving.shape)
    sampled = grid_sample(moving, grid)
    seen = sampled[:, COLOURS:] > FULLY_SEEN
    difference = xp.where(seen, sampled[:, :COLOURS] - fixed[:, :COLOURS], xp.float32(0))
    count = max(float(seen.sum()) * COLOURS, 1.0)
    grad_output = xp.zeros_like(sampled)
    grad_output[:, :COLOURS] = difference * xp.float32(2 / count)
    grad_grid = grid_sample_backward(grad_output, moving, grid, needs=("grid",)).grid
    grad_theta = affine_grid_backward(grad_grid, moving.shape)
    return float((difference**2).sum()) / count, to_numpy(grad_theta)[0].astype(np.float64)


def _prepare(picture: Any, stage: Stage, xp: Any) -> Any:
    """Return a picture as a stage sees it: means over blocks of pixels, blurred."""
    n, channels, height, width = picture.shape
    blocks = picture.reshape(n, channels, height // stage.factor, stage.factor, width // stage.factor, stage.factor)
    small = blocks.mean((3, 5))
    if stage.sigma:
        blurred = blur(small, stage.sigma, xp)
        # Over the coverage, for pixels without data must not darken their neighbours.
        colours = blurred[:, :COLOURS] / xp.maximum(blurred[:, COLOURS:], xp.float32(1e-6))
        small = xp.concatenate([colours, small[:, COLOURS:]], 1)
    return xp.ascontiguousarray(small, xp.float32)
