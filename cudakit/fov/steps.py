"""Checked layers, each able to run forwards and backwards on the window of it that one output unit depends on."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudakit.deform_conv import deform_conv1d, deform_conv2d, deform_conv3d
from cudakit.deform_conv_backward import deform_conv1d_backward, deform_conv2d_backward, deform_conv3d_backward
from cudakit.deform_geometry import Integers
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


def around(pixels: Floats) -> Box:
    """Return the smallest box that holds pixels (P, n)."""
    if len(pixels) == 0:
        return Box((0,) * pixels.shape[1], (0,) * pixels.shape[1])
    first, last = pixels.min(0).astype(int), pixels.max(0).astype(int)
    return Box(tuple(first.tolist()), tuple((last - first + 1).tolist()))


class Samples(NamedTuple):
    """The samples of the units in a box of size W: centres (P, n, W...) in pixels, and weights (P, W...)."""

    centres: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution, deformable or not: offsets (G, K, n, O...) and mask (G, K, O...), or None.

    It maps an input of size `space` to an output of size `out`.
    """

    space: Integers
    out: Integers
    kernel: Integers
    stride: Integers
    padding: Integers  # begins
    dilation: Integers
    groups: int = 1
    offset: Floats | None = None
    mask: Floats | None = None

    def samples(self, units: Box) -> Samples:
        """Return where units sample: a weight fades out within a pixel of the border, its centre on the last pixel."""
        position = self._positions(units)
        last = np.array(self.space).reshape(-1, *[1] * len(self.space)) - 1.0
        centres = np.clip(position, 0, last)
        share = np.clip(1 - np.abs(position - centres), 0, 1).prod(2)
        weights = share if self.mask is None else share * np.abs(self._mask(units))
        flat = (-1, len(self.space), *units.size)
        return Samples(centres.reshape(flat), (weights / self.groups).reshape(-1, *units.size))

    def reads(self, units: Box, weights: Floats) -> Box:
        """Return the box around the cells of the samples of the units that have a weight (W...)."""
        centres, shares = self.samples(units)
        kept = np.moveaxis(centres, 1, -1)[(shares > 0) & (weights > 0)]
        return around(np.stack([np.floor(kept), np.ceil(kept)]).reshape(-1, len(self.space)))

    def spread(self, weights: Floats, units: Box, reads: Box) -> Floats:
        """Return the weights (R...) of the pixels that units of these weights (W...) read."""
        plain = replace(self, mask=None if self.mask is None else np.abs(self.mask))
        kernel = np.full((1, self.groups, *self.kernel), 1 / self.groups)
        found: Floats = plain.backward(weights[None], units, reads, kernel).sum(0)
        return found

    def forward(self, x: Floats, units: Box, reads: Box, weight: Floats | None) -> Floats:
        """Run the deformable convolution."""
        offset, mask, moves = self._moved(units, reads)
        y: Floats = FORWARD[len(self.space)](x[None], offset, weight, None, *moves, 1, mask)[0]
        return y

    def backward(self, grad: Floats, units: Box, reads: Box, weight: Floats | None) -> Floats:
        """Run the deformable convolution's gradient by its input."""
        assert weight is not None
        offset, mask, moves = self._moved(units, reads)
        x = np.zeros((1, weight.shape[1], *reads.size))
        gradients = BACKWARD[len(self.space)](grad[None], x, offset, weight, None, *moves, 1, mask, needs=("input",))
        found: Floats = gradients.input[0]
        return found

    def _positions(self, units: Box) -> Floats:
        """Return the positions (G, K, n, W...): infinite, and so outside, where they are not finite."""
        n = len(self.space)
        index = np.indices((*self.kernel, *units.size)).reshape(2 * n, prod(self.kernel), *units.size)
        regular = [
            (index[n + d] + units.first[d]) * self.stride[d] - self.padding[d] + index[d] * self.dilation[d]
            for d in range(n)
        ]
        position = np.stack(regular, 1).astype(np.float64)[None]
        if self.offset is None:
            return position
        moved = position + self.offset[(..., *units.slices)]
        return np.where(np.isfinite(moved), moved, np.inf)

    def _mask(self, units: Box) -> Any:
        return None if self.mask is None else self.mask[(..., *units.slices)]

    def _moved(self, units: Box, reads: Box) -> tuple[Floats, Any, tuple[Integers, Integers]]:
        """Return (offset, mask, (stride, padding)) of an equal layer from the pixels that are read to the units.

        The sizes of both windows are given, so stride and padding are whatever fits them; the offsets, being free, take
        up the difference to where the taps belong.
        """
        n = len(self.space)
        sizes = tuple(zip(reads.size, units.size, self.kernel, strict=True))
        stride = tuple(max(0, (read - k) // out) + 1 for read, out, k in sizes)
        ends = tuple(max(0, (out - 1) * s + k - r) for (r, out, k), s in zip(sizes, stride, strict=True))
        window = Convolution(reads.size, units.size, self.kernel, stride, (0,) * n, (1,) * n)
        here = window._positions(Box((0,) * n, units.size))
        corner = np.array(reads.first).reshape(-1, *[1] * n)
        offset = (self._positions(units) - corner - here).reshape(1, -1, *units.size)
        mask = self._mask(units)
        return offset, mask if mask is None else mask.reshape(1, -1, *units.size), (stride, (0,) * n + ends)


@dataclass(frozen=True, eq=False)
class Warp:
    """A spatial transformer: a grid (1, O..., n), and (mode, padding_mode, align_corners)."""

    space: Integers
    out: Integers
    grid: Floats
    options: tuple[str, str, bool]

    def samples(self, units: Box) -> Samples:
        """Sample images of the coordinates and of ones: the pixels' centre, and the sum of their weights."""
        coordinates = np.indices(self.space, np.float64)
        images = np.concatenate([np.ones_like(coordinates[:1]), coordinates])
        weights, *sums = self.forward(images, units, self._whole, None)
        safe = np.where(weights > 0, weights, 1)
        return Samples(np.stack(sums)[None] / safe, np.maximum(weights, 0)[None])

    def reads(self, units: Box, weights: Floats) -> Box:
        """Return the whole input: what lies beyond may be padded with any part of it."""
        return self._whole

    def spread(self, weights: Floats, units: Box, reads: Box) -> Floats:
        """Return the magnitudes of the weights (R...) of the pixels that units of these weights (W...) read."""
        found: Floats = np.abs(self.backward(weights[None], units, reads, None)[0])
        return found

    def forward(self, x: Floats, units: Box, reads: Box, weight: Floats | None) -> Floats:
        """Sample."""
        whole = np.zeros((1, len(x), *self.space))
        whole[(..., *reads.slices)] = x
        y: Floats = grid_sample(whole, self._part(units), *self.options)[0]
        return y

    def backward(self, grad: Floats, units: Box, reads: Box, weight: Floats | None) -> Floats:
        """Run the sampler's gradient by its input."""
        x = np.zeros((1, len(grad), *self.space))
        gradients = grid_sample_backward(grad[None], x, self._part(units), *self.options, needs=("input",))
        found: Floats = gradients.input[(0, ..., *reads.slices)]
        return found

    @property
    def _whole(self) -> Box:
        return Box((0,) * len(self.space), self.space)

    def _part(self, units: Box) -> Floats:
        return np.ascontiguousarray(self.grid[(slice(None), *units.slices)])


Step = Convolution | Warp
