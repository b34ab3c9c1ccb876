"""Which tiles take least time on a CPU: of the pixels, and parts of the outputs where weights are as given."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from cudakit.arithmetic import ceil_div
from cudakit.array import LINE_BYTES
from cudakit.deformable.conv_host import PIXELS, SAMPLE, HostConvolution

ROWS, SPLIT_ROWS = 4, 16  # pixels that products go in steps of, with AVX-512; half of `ROWS` without
FEW_PIXELS = 4  # that meet weights one by one, where those are as given (given.cuh)
ALONE = 2  # pixels of a vector that one takes the time of
LEAST_PART = 24  # outputs, where they are shared out
MOST_TILINGS = 64  # numbers of tiles that are tried
TILE_COST, PACKING, CROSSING, TURNING = 8, 28, 8, 41  # see `Tiling`


class Tiling(NamedTuple):
    """Tiles of pixels and parts of the outputs, dealt out to threads; and how long the slowest thread takes.

    Times are counted in pixels that all weights are multiplied with. Each tile takes `TILE_COST` more, to read the
    weights; to pack all weights takes `PACKING`, and to get those that other cores packed `CROSSING`. To turn a column
    takes as long as to multiply it with `TURNING` outputs. Every part of the outputs samples the columns anew.
    """

    conv: HostConvolution
    images: int
    threads: int
    tiles: int  # of an image
    output_parts: int = 1

    @property
    def step(self) -> int:
        """Pixels that a product takes at a time, and tiles are multiples of (`tile_begin` in deform_conv.cu)."""
        if self.conv.given_weights:
            return LINE_BYTES // self.conv.accumulator_bytes
        return SPLIT_ROWS if self.conv.split.array_parts else ROWS

    def _tile_time(self, pixels: int) -> int:
        """Return how long a tile takes (`lanes_of` in given.cuh, with vectors of `LINE_BYTES`)."""
        rest = pixels % self.step
        alone = self.conv.given_weights and rest <= FEW_PIXELS
        return pixels - rest + (ALONE * rest if alone else self.step * (rest > 0))

    def _tiles_time(self, tiles: int) -> int:
        """Return how long the first tiles of an image take."""
        pixels = self.conv.d.pixels
        full = self.tiles == ceil_div(pixels, PIXELS) and not self.conv.given_weights
        step = PIXELS if full else self.step
        blocks = ceil_div(pixels, step)
        size = blocks // self.tiles
        longer = tiles * blocks // self.tiles - tiles * size  # tiles of one step more
        time = (tiles - longer) * self._tile_time(size * step) + longer * self._tile_time((size + 1) * step)
        if tiles == self.tiles:
            last = (blocks - (tiles - 1) * blocks // tiles) * step
            time += self._tile_time(last - (blocks * step - pixels)) - self._tile_time(last)
        return time + tiles * TILE_COST

    def _items_time(self, items: int) -> float:
        """Return how long the first items take: parts of tiles of images."""

        def begin(tile: int) -> int:
            images, tile = divmod(tile, self.tiles)
            return images * self._tiles_time(self.tiles) + self._tiles_time(tile)

        tile, part = divmod(items, self.output_parts)
        return begin(tile) + (begin(tile + 1) - begin(tile)) * part / self.output_parts if part else begin(tile)

    @property
    def time(self) -> float:
        """How long the thread with most to do takes."""
        conv, items = self.conv, self.images * self.tiles * self.output_parts
        threads = min(self.threads, max(1, items))
        ends = [k * items // threads for k in range(threads + 1)]  # `deal` in host_pool.cpp
        longest = max(b - a for a, b in pairwise(map(self._items_time, ends)))
        if conv.given_weights:
            return longest * (1 + (self.output_parts * (TURNING + SAMPLE) - SAMPLE) * conv.groups / conv.out_channels)
        return longest + PACKING / threads + CROSSING * (threads > 1)


def tilings(conv: HostConvolution, images: int, threads: int) -> Iterator[Tiling]:
    """Yield those that are worth trying."""
    pixels = conv.d.pixels
    least = ceil_div(pixels, PIXELS)
    for way in conv.packed_or_given:
        one = Tiling(way, images, threads, least)
        most_tiles = max(1, min(least + threads - 1, ceil_div(pixels, one.step)))
        for tiles in range(least, most_tiles + 1, 1 + (most_tiles - least) // MOST_TILINGS):
            most = min(ceil_div(threads, images * tiles), conv.out_channels // LEAST_PART)
            for parts in range(1, max(1, most if way.given_weights and way.groups == 1 else 1) + 1):
                yield one._replace(tiles=tiles, output_parts=parts)


def choose_tiling(conv: HostConvolution, images: int, threads: int) -> Tiling:
    """Return the tiling of so many images that takes least time, with weights packed or as given."""
    if not conv.d.pixels:
        return Tiling(conv, images, threads, 0)
    return min(tilings(conv, images, threads), key=lambda tiling: tiling.time)
