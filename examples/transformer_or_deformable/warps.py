"""Digits on a canvas under random warps, drawn with `cudakit.grid_sample`.

A warp is a sampling grid (N, CANVAS, CANVAS, 2): it tells for every pixel of the canvas where in the upright picture it
looks, with -1 and 1 at the canvas's borders.
"""

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits

import cudakit

CANVAS = 32
DIGIT = 16
TRAIN = 1000  # scikit-learn's order keeps writers together: the digits after these are by other hands
ANGLE = math.radians(60)
SCALE = 1.4
MOVE = 5.0  # pixels
KNOTS = 5  # along each side of the canvas
ELASTIC = 1.75  # pixels, standard deviation of a knot's displacement

Warp = Callable[[int, torch.Generator], torch.Tensor]


def digits(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's digits (1797, 1, 8, 8) from 0 to 1, and their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return images.to(device), torch.tensor(found.target).to(device)


def identity(count: int) -> torch.Tensor:
    """Return the warp that leaves a picture as it is."""
    return cudakit.affine_grid(torch.eye(2, 3).expand(count, 2, 3), (count, 1, CANVAS, CANVAS))


def pose(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw global poses: rotation, scale and translation, each uniform in its range (the scale in its logarithm)."""
    turn, grow, x, y = (2 * torch.rand(4, count, generator=generator) - 1).unbind()
    angle, scale = ANGLE * turn, SCALE**grow
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack([cos, sin, -sin, cos], -1).unflatten(1, (2, 2))
    move = torch.stack([x, y], -1)[..., None] * (2 * MOVE / CANVAS)
    return cudakit.affine_grid(torch.cat([linear, -linear @ move], 2), (count, 1, CANVAS, CANVAS))


def elastic(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw local warps: normal displacements at KNOTS x KNOTS knots, and a cubic between them."""
    knots = torch.randn(count, 2, KNOTS, KNOTS, generator=generator) * (2 * ELASTIC / CANVAS)
    where = identity(count)
    moves = cudakit.grid_sample(knots, where, "bicubic", "border", align_corners=True)
    return where + moves.movedim(1, -1)


WARPS: dict[str, Warp] = {"pose": pose, "elastic": elastic}


def draw(images: torch.Tensor, warp: torch.Tensor) -> torch.Tensor:
    """Return 8x8 digits on the canvas, DIGIT pixels wide before the warp."""
    grid = warp.to(images.device) * (CANVAS / DIGIT)
    return cudakit.grid_sample(images, grid, "bicubic").clamp(0, 1)
