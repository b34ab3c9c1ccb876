"""Where a deformable kernel looks."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cudakit.reference.taps import FAR, Bools, Floats, Ints, Taps, combinations

Numbers = int | Sequence[int]


def each(value: Numbers, n: int) -> tuple[int, ...]:
    """One number for each dimension."""
    return tuple(np.broadcast_to(value, n).tolist())


def both_ends(padding: Numbers, n: int) -> tuple[int, ...]:
    """All begins, then all ends."""
    return each(padding, 2 * n) if np.size(padding) == 2 * n else each(padding, n) * 2


def deform_output_size(
    sizes: Sequence[int], kernel_size: Sequence[int], stride: Numbers = 1, padding: Numbers = 0, dilation: Numbers = 1
) -> tuple[int, ...]:
    """Return how many output pixels there are along each dimension of an input with these `sizes`.

    Examples
    --------
    >>> deform_output_size((5, 6), (3, 3), stride=2, padding=(1, 0))
    (3, 2)
    """
    n = len(sizes)
    pad, strides, dilations = both_ends(padding, n), each(stride, n), each(dilation, n)
    reach = [dilations[d] * (kernel_size[d] - 1) + 1 for d in range(n)]
    return tuple((sizes[d] + pad[d] + pad[n + d] - reach[d]) // strides[d] + 1 for d in range(n))


class Places(NamedTuple):
    """All samples of a deformable kernel, by image and offset group: N*G of them, each with K*L samples."""

    shape: tuple[int, ...]  # of the input, (N, C, S...)
    groups: int
    kernel: int  # K, the number of kernel indices
    pixels: int  # L, the number of output pixels
    axes: list[Taps]
    mask: Floats  # (N*G, 1, K*L)

    def image(self, input: ArrayLike) -> Floats:
        """Return the input as (N*G, C/G, pixels)."""
        return np.asarray(input, np.float64).reshape(*self._rows(), prod(self.shape[2:]))

    def samples(self, columns: ArrayLike) -> Floats:
        """Return columns (N, C*K, L) as (N*G, C/G, K*L)."""
        return np.asarray(columns, np.float64).reshape(*self._rows(), self.kernel * self.pixels)

    def columns(self, samples: Floats) -> Floats:
        """Return samples (N*G, C/G, K*L) as columns (N, C*K, L)."""
        return samples.reshape(self.shape[0], self.shape[1] * self.kernel, self.pixels)

    def corners(self) -> Iterator[tuple[Ints, Bools, list[Taps]]]:
        """Yield the corners of the cells that the samples lie in."""
        return combinations(self.axes, self.shape[2:])

    def _rows(self) -> tuple[int, int]:
        return self.shape[0] * self.groups, self.shape[1] // self.groups


def places(
    shape: Sequence[int],
    offset: ArrayLike,
    kernel_size: Sequence[int],
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    mask: ArrayLike | None,
) -> Places:
    """Return where the samples of an input of this shape lie."""
    batch, _, *sizes = shape
    n, kernel = len(sizes), prod(kernel_size)
    out = deform_output_size(sizes, kernel_size, stride, padding, dilation)
    moved = np.asarray(offset, np.float64)
    groups = moved.shape[1] // (kernel * n)
    if moved.shape != (batch, groups * kernel * n, *out) or min(out) < 1:
        raise ValueError(f"offset must have shape {(batch, f'G*{kernel * n}', *out)}, got {moved.shape}")
    regular = _regular(out, kernel_size, each(stride, n), both_ends(padding, n), each(dilation, n))
    points = regular + moved.reshape(batch, groups, kernel, n, *out)
    factors = np.ones((batch, groups * kernel, *out)) if mask is None else np.asarray(mask, np.float64)
    flat = (batch * groups, 1, kernel * prod(out))
    axes = [_linear_taps(points[:, :, :, d].reshape(flat), size) for d, size in enumerate(sizes)]
    return Places(tuple(shape), groups, kernel, prod(out), axes, factors.reshape(flat))


def _regular(
    out: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Floats:
    """Pixel coordinates without offsets, shape (K, n, O...)."""
    n = len(out)
    index = np.indices((*kernel_size, *out)).reshape(2 * n, prod(kernel_size), *out)
    rows = [index[n + d] * stride[d] - padding[d] + index[d] * dilation[d] for d in range(n)]
    return np.stack(rows, axis=1).astype(np.float64)


def _linear_taps(x: Floats, size: int) -> Taps:
    """Taps at the pixel coordinates `x` of a dimension of `size` pixels."""
    near = np.abs(x) < FAR  # False for NaN
    cell = np.floor(np.where(near, x, 0.0))
    t = np.where(near, x, 0.0) - cell
    pixel = np.stack([cell, cell + 1]).astype(np.int64)
    slope = np.stack([-np.ones_like(t), np.ones_like(t)])
    inside = near & (pixel >= 0) & (pixel < size)
    return Taps(np.clip(pixel, 0, size - 1), np.stack([1 - t, t]), slope, inside)
