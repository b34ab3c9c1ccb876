"""What `grid_sample`'s kernels on a CPU ask for before they read it.

The pixels of a large image are asked for one by one, where the grid will look. Those of one that a core's own cache
holds come of themselves, once they are there: it is cheaper to ask for the whole of the next image meanwhile, as the
planar form does.
"""

from collections.abc import Iterable
from math import prod

from cudakit.arithmetic import ceil_div
from cudakit.array import LINE_BYTES, itemsize
from cudakit.cpuinfo import second_level_cache_bytes
from cudakit.layout import Image, packed

MOST_PIXELS = 16  # of an image for each of the output, where most of its lines will be read


def is_near(images: Iterable[Image]) -> bool:
    """Whether a core's own cache may well have one image of each batch."""
    return sum(_image_bytes(x) for x in images) <= second_level_cache_bytes()


def next_lines(x: Image, pixels: int, tiles: int) -> int:
    """Return how many lines of the next image to ask for at each of an image's tiles.

    0 where all images are near, where few of their pixels will be read, or where they do not follow one another.
    """
    size = _image_bytes(x)
    whole = any(x.strides[1:] == packed(x.shape, x.dtype, channels_last=last).strides[1:] for last in (False, True))
    wanted = whole and x.shape[0] * size > second_level_cache_bytes() and prod(x.space) <= MOST_PIXELS * pixels
    return ceil_div(size, LINE_BYTES * tiles) if wanted else 0


def _image_bytes(x: Image) -> int:
    return prod(x.shape[1:]) * itemsize(x.dtype)
