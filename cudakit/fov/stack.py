"""A stack of layers: checked, and cut down to what one output unit depends on."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudakit import checks, reference
from cudakit.array import Spec, contiguous_strides
from cudakit.deformable.geometry import Integers, deformation, numbers, output_sizes, per_dimension, window
from cudakit.errors import InvalidArgument
from cudakit.fov.arrays import Floats, read
from cudakit.fov.layers import Conv, DeformConv, Layer, SpatialTransformer
from cudakit.fov.steps import Convolution, Step, Warp
from cudakit.fov.windows import Box, Window, around
from cudakit.layout import Image
from cudakit.sampling.grid_form import MODES, PADDING_MODES

REACHED = 1e-9  # of the largest weight: less is rounding in the coordinates of a grid


class Stage(NamedTuple):
    """A layer, the box of its units that the output unit depends on, their weights (W...), and the box they read.

    The window is the layer between the two boxes.
    """

    step: Step
    units: Box
    weights: Floats
    reads: Box
    window: Window


def trace(steps: Sequence[Step], at: Integers) -> list[Stage]:
    """Return the stages from the output unit `at` down to the input; none where the unit sees nothing."""
    units, weights = Box(at, (1,) * len(at)), np.ones((1,) * len(at))
    stages = []
    for step in reversed(steps):
        box = step.reads(units, weights)
        if 0 in box.size:
            return []
        below = step.spread(weights, units, box)
        below[below <= REACHED * below.max()] = 0
        inner = around(np.argwhere(below).astype(np.float64))
        if 0 in inner.size:
            return []
        reads = Box(tuple(a + b for a, b in zip(box.first, inner.first, strict=True)), inner.size)
        stages.append(Stage(step, units, weights, reads, step.window(units, reads)))
        units, weights = reads, below[inner.slices]
    return stages


def checked(layers: Any, input_size: Any, at: Any) -> tuple[list[Step], Integers]:
    """Check the arguments that describe a stack and a unit of it; return its steps and the unit."""
    space = checks.integers("input_size", input_size, "be 1, 2 or 3 positive ints", length=(1, 2, 3), minimum=1)
    if not isinstance(layers, Sequence) or not layers:
        kind = TypeError if not isinstance(layers, Sequence) else ValueError
        raise InvalidArgument(
            "layers", "be a sequence of layers, from the input to the output", checks.shown(layers), kind
        )
    steps: list[Step] = []
    for i, layer in enumerate(layers):
        try:
            steps.append(_step(layer, steps[-1].out if steps else space))
        except InvalidArgument as error:
            raise InvalidArgument(_part(error.argument, i), error.rule, error.got, error.kind) from None
    out = steps[-1].out
    rule = f"be {len(out)} ints, a unit of the output, whose size is {out}"
    unit = checks.integers("at", at, rule, length=(len(out),), minimum=0)
    if any(a >= size for a, size in zip(unit, out, strict=True)):
        raise InvalidArgument("at", rule, unit)
    return steps, unit


def _part(argument: str, layer: int) -> str:
    return f"{argument} of layers[{layer}]" if argument else f"layers[{layer}]"


def arrays(layers: Sequence[Layer]) -> list[Any]:
    """Return the arrays that layers were given."""
    names = ("offset", "mask", "theta", "grid")
    found = (getattr(layer, name, None) for layer in layers for name in names)
    return [array for array in found if array is not None]


def _step(layer: Any, space: Integers) -> Step:
    """Check a layer on an input of size `space`."""
    if isinstance(layer, SpatialTransformer):
        return _warp(layer, space)
    if isinstance(layer, Conv | DeformConv):
        return _convolution(layer, space)
    raise InvalidArgument("", "be a Conv, a DeformConv or a SpatialTransformer", type(layer).__name__, TypeError)


def _convolution(layer: Conv | DeformConv, space: Integers) -> Convolution:
    n = len(space)
    kernel = per_dimension("kernel_size", numbers("kernel_size", layer.kernel_size, minimum=1), n)
    moves = window(layer.stride, layer.padding, layer.dilation)
    out, stride, padding, dilation = output_sizes(space, kernel, moves)
    if isinstance(layer, Conv):
        return Convolution(space, out, kernel, stride, padding, dilation)
    offset, dtype = read("offset", layer.offset)
    spec, mask, mask_spec = _spec(offset, dtype), None, None
    if layer.mask is not None:
        mask, mask_dtype = read("mask", layer.mask)
        mask_spec = _spec(mask, mask_dtype)
    channels = offset.shape[1] if offset.ndim > 1 else 1  # which every possible number of groups divides
    image = Image((1, channels, *space), contiguous_strides((1, channels, *space)), dtype)
    groups = deformation(image, spec, mask_spec, kernel, moves, "channels_first").offset_groups
    return Convolution(
        *(space, out, kernel, stride, padding, dilation, groups),
        offset.reshape(groups, prod(kernel), n, *out),
        None if mask is None else mask.reshape(groups, prod(kernel), *out),
    )


def _warp(layer: SpatialTransformer, space: Integers) -> Warp:
    n = len(space)
    checks.choice("mode", layer.mode, MODES)
    checks.choice("padding_mode", layer.padding_mode, PADDING_MODES)
    checks.boolean("align_corners", layer.align_corners)
    if (layer.theta is None) == (layer.grid is None):
        raise InvalidArgument("theta", "be given, or else grid", "both" if layer.grid is not None else "neither")
    if layer.grid is not None:
        grid, dtype = read("grid", layer.grid)
        checks.shape("grid", _spec(grid, dtype), (1, *("D_out", "H_out", "W_out")[3 - n :], n))
    else:
        theta, dtype = read("theta", layer.theta)
        checks.shape("theta", _spec(theta, dtype), (1, n, n + 1))
        size = space if layer.size is None else layer.size
        out = checks.integers("size", size, f"be {n} positive ints", length=(n,), minimum=1)
        grid = reference.affine_grid(theta, (1, 1, *out), layer.align_corners)
    if 0 in grid.shape:
        raise InvalidArgument("grid", "have no empty dimension", f"shape {grid.shape}")
    return Warp(space, grid.shape[1:-1], grid, (layer.mode, layer.padding_mode, layer.align_corners))


def _spec(array: Floats, dtype: str) -> Spec:
    return Spec(array.shape, contiguous_strides(array.shape), dtype)
