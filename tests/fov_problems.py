"""Stacks of layers for the tests of fields of view, and what they do by other means."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cudakit import reference
from cudakit.fov import Conv, DeformConv, SpatialTransformer

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


def affine(n: int, size: Sequence[int], shift: Sequence[float]) -> Floats:
    """Return the transform that moves where units look by some pixels, x first."""
    return np.column_stack([np.eye(n), 2 * np.array(shift) / np.array(size[::-1])])[None]
