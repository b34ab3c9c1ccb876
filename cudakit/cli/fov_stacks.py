"""Four stacks of layers over one photograph, and the places of it whose units are compared."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cudakit.cli.learning import blur
from cudakit.cli.registration import Transform
from cudakit.fov import Conv, DeformConv, Moments, SpatialTransformer, moments, sampling_positions
from cudakit.fov.layers import Layer

Floats = NDArray[np.float64]

FINE, COARSE = 1.5, 3.0  # pixels that the picture and the structure tensor are blurred by
NARROW, WIDE = 0.75, 4.0  # spacing of taps across an edge, and where there is none, in pixels
CONTRAST = 0.1  # of the mean structure: there the spacing is halfway
MARGIN = 0.14  # of each side that no place is chosen from


class Place(NamedTuple):
    """A place in the picture: its letter, what is there, and its pixel."""

    letter: str
    what: str
    pixel: tuple[int, int]


class Stack(NamedTuple):
    """A stack of layers whose output has the sizes `out`.

    `linear` and `shift` say where its units look: pixel = linear @ unit + shift.
    """

    name: str
    note: str
    layers: list[Layer]
    out: tuple[int, ...]
    linear: Floats = np.eye(2)
    shift: Floats = np.zeros(2)

    def unit(self, pixel: Sequence[int]) -> tuple[int, ...]:
        """Return the unit that looks nearest to a pixel."""
        nearest = np.round(np.linalg.solve(self.linear, np.array(pixel) - self.shift))
        return tuple(np.clip(nearest, 0, np.array(self.out) - 1).astype(int).tolist())


def steering(photo: Any) -> Floats:
    r"""Return what the picture's structure makes of a kernel at each pixel: matrices (2, 2, H, W), y before x.

    .. math:: A = narrow \, I + (wide - narrow) (I + J / \tau)^{-1}

    where J is the structure tensor, the blurred outer product of the gradient. Along an edge J is next to nothing and
    taps lie wide apart, across it J is large and they keep together; where nothing is to be seen all lie wide apart.
    """
    grey = photo.mean(1, keepdims=True).astype(np.float64)
    slopes = np.gradient(_blurred(grey, FINE)[0, 0])
    products = np.stack([slopes[0] ** 2, slopes[0] * slopes[1], slopes[1] ** 2])[None]
    yy, yx, xx = _blurred(products, COARSE)[0]
    scale = max(CONTRAST * float((yy + xx).mean()), np.finfo(np.float64).tiny)
    yy, yx, xx = 1 + yy / scale, yx / scale, 1 + xx / scale
    inverse = np.array([[xx, -yx], [-yx, yy]]) / (yy * xx - yx**2)
    return np.asarray(NARROW * np.eye(2)[:, :, None, None] + (WIDE - NARROW) * inverse)


def _blurred(picture: Any, sigma: float) -> Any:
    reach = math.ceil(3 * sigma)  # so that nothing but copies of the border comes in from beyond it
    padded = np.pad(picture, [(0, 0), (0, 0), (reach, reach), (reach, reach)], "edge")
    return blur(padded, sigma, np)[..., reach:-reach, reach:-reach]


def steered_offsets(steer: Floats, kernel: int) -> Floats:
    """Return the offsets (1, K*2, H, W) that put the taps of a square kernel where the matrices say."""
    reach = np.arange(kernel) - kernel // 2
    taps = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
    moved = np.einsum("deyx,ke->kdyx", steer - np.eye(2)[:, :, None, None], taps)
    return np.asarray(moved.reshape(1, -1, *steer.shape[2:]))


def choose_places(steer: Floats) -> list[Place]:
    """Choose an edge, a flat place and a busy one, apart from each other and from the border."""
    size = steer.shape[2:]
    yy, yx, xx = steer[0, 0], steer[0, 1], steer[1, 1]
    half, root = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    long, short = half + root, half - root
    free = np.zeros(size, bool)
    free[tuple(slice(int(MARGIN * side), side - int(MARGIN * side)) for side in size)] = True
    rows, columns = np.indices(size)
    found = []
    for letter, what, score in (("A", "an edge", long - short), ("B", "flat", short), ("C", "busy", -long)):
        y, x = np.unravel_index(int(np.where(free, score, -np.inf).argmax()), size)
        found.append(Place(letter, what, (int(y), int(x))))
        free &= np.hypot(rows - y, columns - x) > min(size) / 5
    return found


def convolutions(kernels: Sequence[int], dilation: int = 1) -> list[Layer]:
    """Return plain layers that keep the size of their input."""
    return [Conv(kernel, padding=kernel // 2 * dilation, dilation=dilation) for kernel in kernels]


def deformable(offsets: Sequence[Any], kernels: Sequence[int]) -> list[Layer]:
    """Return deformable layers, each with its offsets."""
    return [DeformConv(offset, k, padding=k // 2) for offset, k in zip(offsets, kernels, strict=True)]


def matching_transformer(
    layers: list[Layer], kernels: Sequence[int], pixel: Sequence[int], size: tuple[int, int], name: str
) -> tuple[Stack, str]:
    """Return a spatial transformer whose field at a pixel has the second moments of other layers' field there.

    With the covariance C of that field and c I of the plain one, the transform is the square root of C / c, and no axis
    of it is below a half. One unit looks at the very pixel, and the output has units for every pixel of the input. A
    sentence says what the transform is; `name` is the pixel's.
    """
    field, plain = _spread(layers, pixel, size), _spread(convolutions(kernels), [side // 2 for side in size], size)
    varies = field.mass > 0 and plain.covariance[0, 0] > 0  # not so for kernels of one tap
    values, vectors = np.linalg.eigh(field.covariance / plain.covariance[0, 0] if varies else np.eye(2))
    scales = np.maximum(np.sqrt(np.maximum(values, 0)), 0.5)
    linear = (vectors * scales) @ vectors.T
    out = np.ceil(np.array(size) / min(1.0, scales.min())).astype(int)
    middle, pixels = (np.array(size) - 1) / 2, np.array(pixel)
    unit = np.round((out - 1) / 2 + np.linalg.solve(linear, pixels - middle))
    shift = pixels - linear @ unit
    theta = _theta(linear, shift, size, out)
    stack: list[Layer] = [SpatialTransformer(theta[None], size=tuple(out.tolist())), *convolutions(kernels)]
    if not varies:
        note, said = "one θ, the identity", f"The transformer's θ is the identity: the field at {name} is empty."
    elif values.min() < 0.25:
        note = f"one θ, which nearly fits {name}"
        said = f"The transformer's θ comes near to the deformable stack's field at {name}, an axis of which is short."
    else:
        note = f"one θ, which fits {name}"
        said = f"The transformer's θ gives it the second moments of the deformable stack's field at {name}."
    return Stack("spatial transformer", note, stack, tuple(out.tolist()), linear, shift), said


def _theta(linear: Floats, shift: Floats, size: Sequence[int], out: Any) -> Transform:
    """Return the transform, in normalised coordinates, that maps units to pixels as ``linear @ unit + shift`` does."""
    scale = 2 / np.array(size)
    rest = scale * (linear @ ((out - 1) / 2) + shift - (np.array(size) - 1) / 2)
    return np.column_stack([(scale[:, None] * linear * (out / 2))[::-1, ::-1], rest[::-1]])


def _spread(layers: list[Layer], at: Sequence[int], size: Sequence[int]) -> Moments:
    positions, weights = sampling_positions(layers, size, tuple(at))
    return moments(weights, positions)
