"""The operators on the window of a layer that one output unit depends on: forwards, and backwards to the pixels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cudakit.deformable import (
    deform_conv1d,
    deform_conv1d_backward,
    deform_conv2d,
    deform_conv2d_backward,
    deform_conv3d,
    deform_conv3d_backward,
)
from cudakit.deformable.geometry import Integers
from cudakit.fov.arrays import Floats
from cudakit.sampling import grid_sample, grid_sample_backward

FORWARD = {1: deform_conv1d, 2: deform_conv2d, 3: deform_conv3d}
BACKWARD = {1: deform_conv1d_backward, 2: deform_conv2d_backward, 3: deform_conv3d_backward}


class Box(NamedTuple):
    """A box of pixels: its first one, and its sizes."""

    first: Integers
    size: Integers

    @property
    def slices(self) -> tuple[Any, ...]:
        """The box as an index of an array's last dimensions, after an ellipsis."""
        return tuple(slice(a, a + s) for a, s in zip(self.first, self.size, strict=True))

    def within(self, window: "Box") -> tuple[Any, ...]:
        """Return the box as such an index of an array that shows only the window."""
        return Box(tuple(a - b for a, b in zip(self.first, window.first, strict=True)), self.size).slices


def around(pixels: Floats) -> Box:
    """Return the smallest box that holds pixels (P, n)."""
    if len(pixels) == 0:
        return Box((0,) * pixels.shape[1], (0,) * pixels.shape[1])
    first, last = pixels.min(0).astype(int), pixels.max(0).astype(int)
    return Box(tuple(first.tolist()), tuple((last - first + 1).tolist()))


@dataclass(frozen=True, eq=False)
class ConvolutionWindow:
    """A deformable convolution from a window of pixels (C, R...) to a window of units (C_out, W...)."""

    size: Integers  # R
    offset: Floats
    mask: Floats | None
    stride: Integers
    padding: Integers

    def forward(self, x: Floats, weight: Floats | None) -> Floats:
        """Return the units' values."""
        y: Floats = FORWARD[len(self.size)](
            x[None], self.offset, weight, None, self.stride, self.padding, 1, self.mask
        )[0]
        return y

    def backward(self, grad: Floats, weight: Floats | None) -> Floats:
        """Return the gradient by the pixels from that by the units."""
        assert weight is not None
        x, moves = np.zeros((1, weight.shape[1], *self.size)), (self.stride, self.padding, 1)
        differentiate = BACKWARD[len(self.size)]
        gradients = differentiate(grad[None], x, self.offset, weight, None, *moves, self.mask, needs=("input",))
        found: Floats = gradients.input[0]
        return found


@dataclass(frozen=True, eq=False)
class WarpWindow:
    """A spatial transformer from a window of pixels (C, R...) to a window of units (C, W...).

    It samples an image of `size`, of which the pixels are the part `inner` and the rest is black.
    """

    size: Integers
    inner: tuple[Any, ...]
    sampling: tuple[Any, ...]  # grid, mode, padding_mode, align_corners

    def forward(self, x: Floats, weight: Floats | None = None) -> Floats:
        """Return the units' values."""
        image = np.zeros((1, len(x), *self.size))
        image[(..., *self.inner)] = x
        y: Floats = grid_sample(image, *self.sampling)[0]
        return y

    def backward(self, grad: Floats, weight: Floats | None = None) -> Floats:
        """Return the gradient by the pixels from that by the units."""
        image = np.zeros((1, len(grad), *self.size))
        gradients = grid_sample_backward(grad[None], image, *self.sampling, needs=("input",))
        found: Floats = gradients.input[(0, ..., *self.inner)]
        return found


Window = ConvolutionWindow | WarpWindow
