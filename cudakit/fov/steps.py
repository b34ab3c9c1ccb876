"""Checked layers: where the units of a box of their output look, and what operator that makes."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudakit.deformable.geometry import Integers
from cudakit.fov.arrays import Floats
from cudakit.fov.windows import Box, ConvolutionWindow, WarpWindow, around


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
        return np.asarray(plain.window(units, reads).backward(weights[None], kernel).sum(0))

    def window(self, units: Box, reads: Box) -> ConvolutionWindow:
        """Return an equal layer from the pixels that are read to the units.

        The sizes of both boxes are given, so stride and padding are whatever fits them; the offsets, being free, take
        up the difference to where the taps belong.
        """
        n = len(self.space)
        sizes = tuple(zip(reads.size, units.size, self.kernel, strict=True))
        stride = tuple(max(0, (read - k) // out) + 1 for read, out, k in sizes)
        ends = tuple(max(0, (out - 1) * s + k - r) for (r, out, k), s in zip(sizes, stride, strict=True))
        fitted = Convolution(reads.size, units.size, self.kernel, stride, (0,) * n, (1,) * n)
        there = fitted._positions(Box((0,) * n, units.size)) + np.array(reads.first).reshape(-1, *[1] * n)
        offset = (self._positions(units) - there).reshape(1, -1, *units.size)
        mask = None if self.mask is None else self._mask(units).reshape(1, -1, *units.size)
        return ConvolutionWindow(reads.size, offset, mask, stride, (0,) * n + ends)

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


@dataclass(frozen=True, eq=False)
class Warp:
    """A spatial transformer: a grid (1, O..., n), and (mode, padding_mode, align_corners)."""

    space: Integers
    out: Integers
    grid: Floats
    options: tuple[str, str, bool]

    def samples(self, units: Box) -> Samples:
        """Sample images of the coordinates and of ones: the pixels' centre, and the sum of their weights."""
        box = self.reads(units, np.ones(units.size))
        coordinates = np.indices(box.size) + np.array(box.first).reshape(-1, *[1] * len(box.first))
        images = np.concatenate([np.ones((1, *box.size)), coordinates])
        weights, *sums = self.window(units, box).forward(images)
        safe = np.where(weights > 0, weights, 1)
        return Samples(np.stack(sums)[None] / safe, np.maximum(weights, 0)[None])

    def reads(self, units: Box, weights: Floats) -> Box:
        """Return the box of the pixels around what the units that have a weight (W...) look at.

        What is padded may read any part of the input. "nearest" reads the whole as well, for its halves would round
        another way in other coordinates.
        """
        if not self._crops:
            return self._whole
        reach, last = (2 if self.options[0] == "bicubic" else 1), np.array(self.space) - 1
        pixels = self._pixels(units)[weights > 0]
        near = pixels[((pixels > -reach) & (pixels < last + reach)).all(-1)]
        ends = np.stack([np.floor(near) - reach + 1, np.floor(near) + reach])
        return around(np.clip(ends, 0, last).reshape(-1, len(last)))

    def spread(self, weights: Floats, units: Box, reads: Box) -> Floats:
        """Return the magnitudes of the weights (R...) of the pixels that units of these weights (W...) read."""
        return np.asarray(np.abs(self.window(units, reads).backward(weights[None])[0]))

    def window(self, units: Box, reads: Box) -> WarpWindow:
        """Return an equal sampler from the pixels that are read to the units."""
        image = reads if self._crops else self._whole
        if image == self._whole:
            sampling = (self.grid[(slice(None), *units.slices)], *self.options)
        else:
            away = self._pixels(units) - np.array(image.first)
            grid = (2 * away + 1) / np.array(image.size) - 1
            sampling = (grid[None, ..., ::-1], *self.options[:2], False)
        return WarpWindow(image.size, reads.within(image), (np.ascontiguousarray(sampling[0]), *sampling[1:]))

    @property
    def _crops(self) -> bool:
        mode, padding_mode, _ = self.options
        return padding_mode == "zeros" and mode != "nearest"

    @property
    def _whole(self) -> Box:
        return Box((0,) * len(self.space), self.space)

    def _pixels(self, units: Box) -> Floats:
        """Return the pixels (W..., n) that the units look at, slowest dimension first."""
        grid, sizes = self.grid[(0, *units.slices)][..., ::-1], np.array(self.space)
        pixels: Floats = (grid + 1) / 2 * (sizes - 1) if self.options[2] else ((grid + 1) * sizes - 1) / 2
        return pixels


Step = Convolution | Warp
