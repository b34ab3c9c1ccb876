"""A deformable layer that learns where to look: its 3 x 3 kernel follows one that was turned and spread out.

The nine offsets, the same at every pixel, start from zero and follow the gradient of the squared difference, which
`deform_conv2d_backward` carries to them. Nothing but NumPy, or CuPy, is needed.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cudakit.cli.command import to_numpy
from cudakit.cli.learning import Adam, Floats, Stage, blur, scale_stages
from cudakit.deformable import deform_conv2d, deform_conv2d_backward

Offsets = Floats  # (9, 2): dy, dx of each tap

TAPS: Offsets = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)], np.float64)  # of a plain kernel
OUTPUTS = 16  # of the layer, with weights drawn at random: enough to tell the nine taps apart
DEGREES, ZOOM = 30.0, 2.5  # what is hidden
MARGIN = 8  # pixels at the border that are not compared: taps there see black
STAGES = Stage(0.3, 5, sigma=3.0), Stage(0.1, 3, sigma=1.5), Stage(0.03, 2)


class OffsetProgress(NamedTuple):
    """Where the learning stands before a step: the blur of the pictures, the offsets, and the loss."""

    sigma: float
    offsets: Offsets
    loss: float


def hidden_offsets() -> Offsets:
    """Return the offsets that turn and spread out a plain kernel."""
    angle = math.radians(DEGREES)
    turn = ZOOM * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return TAPS @ turn.T - TAPS


def tap_error(offsets: Offsets) -> float:
    """Return how far, in pixels, the taps are from the hidden ones, at the worst."""
    return float(np.linalg.norm(offsets - hidden_offsets(), axis=1).max())


def everywhere(offsets: Offsets, size: tuple[int, int], xp: Any) -> Any:
    """Return the offset field that moves every pixel's taps alike."""
    return xp.asarray(np.broadcast_to(offsets.reshape(1, 18, 1, 1), (1, 18, *size)), xp.float32)


def convolve(picture: Any, offsets: Offsets, xp: Any) -> Any:
    """Return what the layer makes of a picture (1, 3, H, W)."""
    field = everywhere(offsets, picture.shape[2:], xp)
    return deform_conv2d(picture, field, _kernel(xp), padding=1)


def _kernel(xp: Any) -> Any:
    weights = np.random.default_rng(0).normal(size=(OUTPUTS, 3, 3, 3)) / math.sqrt(3 * len(TAPS))
    return xp.asarray(weights, xp.float32)


def learn_offsets(picture: Any, steps: int, xp: Any) -> Iterator[OffsetProgress]:
    """Learn the hidden offsets from what they make of a picture, from blurred pictures to the sharp one.

    Yields
    ------
    OffsetProgress
        Before each step, and once at the end.
    """
    offsets = np.zeros_like(TAPS)
    for stage in scale_stages(STAGES, steps):
        seen = xp.asarray(blur(picture, stage.sigma, xp), xp.float32) if stage.sigma else picture
        target = convolve(seen, hidden_offsets(), xp)
        adam = Adam(stage.rate, stage.steps)
        for _ in range(stage.steps):
            loss, gradient = _loss_and_gradient(offsets, seen, target, xp)
            yield OffsetProgress(stage.sigma, offsets, loss)
            offsets = adam.step(offsets, gradient)
    yield OffsetProgress(stage.sigma, offsets, _loss_and_gradient(offsets, seen, target, xp)[0])


def _loss_and_gradient(offsets: Offsets, picture: Any, target: Any, xp: Any) -> tuple[float, Offsets]:
    """Return the mean squared difference away from the border, and its gradient by the offsets."""
    difference = xp.zeros_like(target)
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    difference[inner] = (convolve(picture, offsets, xp) - target)[inner]
    count = difference[inner].size
    field = everywhere(offsets, picture.shape[2:], xp)
    grad_output = difference * xp.float32(2 / count)
    gradients = deform_conv2d_backward(grad_output, picture, field, _kernel(xp), padding=1, needs=("offset",))
    by_tap = to_numpy(gradients.offset.sum((0, 2, 3))).astype(np.float64)
    return float((difference**2).sum()) / count, by_tap.reshape(TAPS.shape)
