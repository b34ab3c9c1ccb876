"""Every differentiable operator with small arrays, as functions that JAX transforms."""

from typing import Any

import numpy as np

import cudakit
from cudakit.op import OPS

from .conftest import require

MOVES = (1, 0, 1, "channels_first", None, False)  # stride, padding, dilation, data_format, workspace, allow_tf32
# Every differentiable operator: shapes of its arrays, and its other arguments.
CALLS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "affine_grid": (((2, 2, 3),), ((2, 1, 4, 3), False)),
    "grid_sample": (((2, 3, 6, 5), (2, 4, 3, 2)), ("bilinear", "zeros", False, "channels_first")),
    "deform_im2col": (((2, 4, 6, 5), (2, 18, 4, 3), (2, 9, 4, 3)), (3, 1, 0, 1, "channels_first")),
    "deform_col2im": (((2, 36, 12), (2, 18, 4, 3), (2, 9, 4, 3)), (3, 1, 0, 1, "channels_first", (6, 5))),
    "deform_conv1d": (((2, 4, 6), (2, 3, 4), (6, 2, 3), (6,), (2, 3, 4)), MOVES),
    "deform_conv2d": (((2, 4, 6, 5), (2, 18, 4, 3), (6, 2, 3, 3), (6,), (2, 9, 4, 3)), MOVES),
    "deform_conv3d": (((2, 4, 4, 4, 3), (2, 81, 2, 2, 1), (6, 2, 3, 3, 3), (6,), (2, 27, 2, 2, 1)), MOVES),
}


def drawn(name: str, *count: int, dtype: str = "float32") -> list[Any]:
    """Draw the arrays of a call, with more leading axes for `count`."""
    rng, numpy = np.random.default_rng(7), require("jax").numpy
    return [numpy.asarray(rng.uniform(size=(*count, *shape)), dtype) for shape in CALLS[name][0]]


def function(name: str) -> Any:
    return lambda *arrays: OPS[name](arrays, *CALLS[name][1])[0]


def loss(name: str) -> Any:
    return lambda *arrays: (function(name)(*arrays) ** 2).sum()


def slope(x: Any, grid: Any) -> Any:
    """Return the gradient of the squares of samples by an image."""
    return require("jax").grad(lambda x: (cudakit.grid_sample(x, grid) ** 2).sum())(x)
