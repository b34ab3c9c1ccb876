"""Where the units of a trained network look, measured with `cudakit.fov`.

The field of a unit is made of the positions at which the samples of all layers, one upon another, read the canvas, each
weighed by the number of paths that lead to it. Positions and displacements are in pixels of the canvas, y before x.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from networks import Network
from numpy.typing import NDArray
from torch import nn
from warps import CANVAS, draw, identity

import cudakit
from cudakit import fov
from cudakit.torch.nn import DeformConv2dPack, SpatialTransformer

UNITS = range(2, 7)  # the rows and columns of the last layer, 4 pixels apart, that are on the upright digit
Floats = NDArray[np.float64]


class Fields(NamedTuple):
    """The fields of the units for each picture: centres (N, U, 2), covariances (N, U, 2, 2) and sizes (N, U)."""

    centres: Floats
    covariances: Floats
    sizes: Floats


@torch.no_grad()
def decisions(network: Network, pictures: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
    """Return the transforms and offsets that a network decides on for pictures, by the module that finds them."""
    found: dict[nn.Module, torch.Tensor] = {}
    movers = [m for m in network.modules() if isinstance(m, DeformConv2dPack | SpatialTransformer)]
    deciders = [m.affine if isinstance(m, SpatialTransformer) else m.conv_offset for m in movers]
    hooks = [m.register_forward_hook(lambda m, _, out: found.update({m: out.cpu().double()})) for m in deciders]
    network.eval()(pictures)
    for hook in hooks:
        hook.remove()
    return found


def layers(network: Network, found: dict[nn.Module, torch.Tensor], i: int) -> list[Any]:
    """Return the layers of a network, with what it decides on for picture i."""
    stack: list[Any] = []
    if isinstance(network.front, SpatialTransformer):
        stack.append(fov.SpatialTransformer(theta=found[network.front.affine][i].view(1, 2, 3)))
    for convolution, *_ in network.features:
        moves = (convolution.kernel_size, convolution.stride, convolution.padding)
        if isinstance(convolution, DeformConv2dPack):
            stack.append(fov.DeformConv(found[convolution.conv_offset][i : i + 1], *moves))
        else:
            stack.append(fov.Conv(*moves))
    return stack


def fields(network: Network, pictures: torch.Tensor) -> Fields:
    """Measure the fields of the units on the digit; NaN where a unit looks beside the canvas."""
    found = decisions(network, pictures)
    moments = []
    for i in range(len(pictures)):
        stack = layers(network, found, i)
        for unit in product(UNITS, UNITS):
            positions, weights = fov.sampling_positions(stack, (CANVAS, CANVAS), unit)
            moments.append(fov.moments(weights, positions))
    values = ([m.centre for m in moments], [m.covariance for m in moments], [m.size for m in moments])
    return Fields(*(np.reshape(x, (len(pictures), len(UNITS) ** 2, *np.shape(x)[1:])) for x in values))


def on_digit(warp: torch.Tensor, points: Floats) -> Floats:
    """Return which points of the upright pictures are seen at points (N, U, 2) of the warped ones."""
    grid = torch.tensor((2 * points[..., ::-1] + 1) / CANVAS - 1)
    seen = cudakit.grid_sample(warp.double().movedim(-1, 1), grid[:, None], padding_mode="border")
    pixels: Floats = ((seen[:, :, 0].movedim(1, -1).flip(-1) + 1) * CANVAS - 1).numpy() / 2
    return pixels


def parts(moves: Floats) -> dict[str, Floats]:
    """Split displacements (N, U, 2) of units into a common one, a linear map of the units' places, and the rest."""
    common = np.broadcast_to(moves.mean(1, keepdims=True), moves.shape)
    places = np.array(list(product(UNITS, UNITS)), np.float64) - np.mean(UNITS)
    linear = places @ (np.linalg.pinv(places) @ moves)
    return {"translation": common, "linear": linear, "bending": moves - common - linear}


def slope(moves: Floats, needed: Floats) -> float:
    """Return how far fields go for each pixel that they would have to: 1 all the way, 0 not at all."""
    return float((moves * needed).sum() / (needed**2).sum())


def apart(centres: Floats) -> Floats:
    """Return the displacements of centres (N, U, 2) from their common centre."""
    return centres - centres.mean(1, keepdims=True)


def root_mean_square(moves: Floats) -> float:
    """Return the root of the mean squared length of displacements."""
    return float(np.sqrt((moves**2).sum(-1).mean()))


def measure(network: Network, images: torch.Tensor, warps: torch.Tensor) -> dict[str, Any]:
    """Return numbers about a network's fields on warped digits, averaged over digits and units.

    At pixel c of a warped picture one sees the piece g(c) of the upright digit. Take a field around c, around c' on the
    upright digit. If it stays, then g(c) - g(c') = 0. If it goes along with the digit, from the unit's plain place p,
    then g(c) = p, so that g(c) - g(c') = p - g(p). ``follows`` is the slope of the left side by the right, for each of
    the `parts`.
    """
    plain = fields(Network(False, False, 2), torch.zeros(1, 1, CANVAS, CANVAS)).centres
    warped = fields(network, draw(images, warps))
    upright = fields(network, draw(images, identity(len(images))))
    seen = np.isfinite(warped.centres + upright.centres).all((1, 2))
    centres, before, warp = warped.centres[seen], upright.centres[seen], warps[torch.tensor(seen)]
    places = np.broadcast_to(plain, centres.shape)
    followed = parts(on_digit(warp, centres) - on_digit(warp, before))
    needed = parts(places - on_digit(warp, places))
    return {
        "pictures": len(centres),
        "size": float(warped.sizes[seen].mean()),
        "shift": root_mean_square(centres - plain),
        "spacing": root_mean_square(apart(centres)) / root_mean_square(apart(plain)),
        "local": root_mean_square(parts(centres - plain)["bending"]),
        "follows": {part: slope(followed[part], needed[part]) for part in needed},
    }


def example(network: Network, image: torch.Tensor, warp: torch.Tensor) -> dict[str, Any]:
    """Return the centres of the fields on one digit, and the covariance of the first of them."""
    found = fields(network, draw(image[None], warp[None]))
    return {"centres": found.centres[0].round(2).tolist(), "covariance": found.covariances[0, 0].round(2).tolist()}
