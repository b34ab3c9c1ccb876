"""In which of two forms `grid_sample`'s kernels read an image, and how much of it at a time.

*Planar*: pixels of a channel follow one another (or anyhow). *Channels*: the channels of a pixel are neighbours; each
coordinate's taps are worked out once and the channels go in vectors.
"""

from math import prod
from typing import NamedTuple

from cudakit.arithmetic import ceil_div
from cudakit.array import CPU
from cudakit.layout import Image, cuda_lanes, cuda_vector, host_vector
from cudakit.plan import Target

MODES = ("nearest", "bilinear", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
MODE_CONSTANTS = dict(zip(MODES, ("NEAREST", "LINEAR", "CUBIC"), strict=True))
TAPS = dict(zip(MODES, (1, 2, 4), strict=True))

HOST_TILE = 32  # samples planned together on a CPU: a few SIMD vectors
PLANAR_TILE = 64  # of the planar forward pass, which keeps less for each of them
SIMD_CHANNELS = 8  # numbers of float32 in a vector
FEW_CHANNELS = 4  # up to here the planar form is taken even where channels are neighbours
LARGEST_GROUP = 4  # channels that the planar form reads together
PLANNING = 0.2  # of the time of an image's gradient, what each slab takes beyond its part


class Form(NamedTuple):
    """A kernel's form and its compile-time sizes: samples planned together, lanes and channels of a pixel at a time.

    `width` are all channels where a CPU takes them in one pass that is compiled for so many, else 0.
    """

    channels: bool
    tile: int
    lanes: int
    vector: int
    group: int
    width: int = 0


def choose_form(x: Image, output: Image, target: Target, neighbours: bool, backward: bool = False) -> Form:
    """Choose how to read an image where the output, or its gradient, has pixels.

    `neighbours`: the image's channels lie next to each other, or will.
    """
    count = x.shape[1]
    if target.device == CPU:
        if not neighbours or count <= FEW_CHANNELS:
            return Form(False, HOST_TILE if backward else PLANAR_TILE, 1, 1, even_group(count))
        vector = host_vector(count)
        gains = count < vector and (backward or count % SIMD_CHANNELS)  # whole vectors forwards: any number is as fast
        return Form(True, HOST_TILE, 1, vector, 1, count if gains else 0)
    vector = cuda_vector(count, x.dtype)
    several = neighbours and vector > 1
    # The output's channels go in vectors, too, where they are neighbours.
    if not (several and x.in_vectors(vector) and (output.strides[1] != 1 or output.in_vectors(vector))):
        return Form(False, 1, 1, 1, even_group(count))
    return Form(True, 1, cuda_lanes(count, vector, x.shape[0] * prod(output.space)), vector, 1)


def even_group(channels: int) -> int:
    """Return how many channels the planar form reads together, in groups of about the same size."""
    return ceil_div(channels, ceil_div(channels, LARGEST_GROUP)) if channels else 1


def row_window(x: Image, form: Form, mode: str, target: Target) -> int:
    """Return what makes a row of taps one contiguous load (`WINDOW` in `rows.cuh`), at no negative offset."""
    if target.device != CPU or form.channels or x.space[-1] < TAPS[mode] or min(x.strides[2:]) < 0:
        return 0
    if x.strides[-1] == 1:
        return 1
    return 2 if x.strides[1] == 1 and x.strides[-1] == x.shape[1] == form.group else 0


def shares_of(x: Image, target: Target) -> int:
    """Return into how many slabs, or parts of its channels, to cut the gradient of an image, for the least time."""
    if target.device != CPU:
        return 1
    batch, threads = max(x.shape[0], 1), target.threads
    most = min(threads, x.space[0] if len(x.space) > 1 else x.shape[1])

    def time(shares: int) -> float:
        return ceil_div(shares * batch, threads) * (1 / shares + PLANNING * (shares > 1))

    return min(range(1, max(most, 1) + 1), key=time)
