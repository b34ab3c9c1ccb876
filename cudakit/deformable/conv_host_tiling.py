"""Which cut of a deformable convolution takes least time on a CPU: tiles, parts of the outputs, weights as given."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from cudakit.array import LINE_BYTES
from cudakit.deformable.conv_host import PIXELS, SAMPLE, Convolution

ROWS, SPLIT_ROWS = 4, 16  # pixels that products go in steps of, with AVX-512; half of `ROWS` without
FEW_PIXELS = 4  # that meet weights one by one, where those are as given (given.cuh)
ALONE = 2  # pixels of a vector that one takes the time of
LEAST_PART = 24  # outputs, where they are shared out
MOST_CUTS = 64  # numbers of tiles that are tried
TILE_COST, PACKING, CROSSING, TURNING = 8, 28, 8, 41  # see `Shares`


class Shares(NamedTuple):
    """How many pixels' worth of work the thread with most to do has, if images and outputs are cut like that.

    Times are counted in pixels that all weights are multiplied with. Each tile takes `TILE_COST` more, to read the
    weights; to pack all weights takes `PACKING`, and to get those that other cores packed `CROSSING`. To turn a column
    takes as long as to multiply it with `TURNING` outputs. Every part of the outputs samples the columns anew.
    """

    conv: Convolution
    images: int
    threads: int
    tiles: int  # of an image
    parts: int = 1  # of the outputs

    @property
    def unit(self) -> int:
        """Pixels that a product takes at a time, and tiles are multiples of (`tile_begin` in deform_conv.cu)."""
        if self.conv.given:
            return LINE_BYTES // self.conv.accumulator_bytes
        return SPLIT_ROWS if self.conv.split.data else ROWS

    def _time(self, pixels: int) -> int:
        """Return how many pixels' time a tile takes (`lanes_of` in given.cuh, with vectors of `LINE_BYTES`)."""
        rest = pixels % self.unit
        alone = self.conv.given and rest <= FEW_PIXELS
        return pixels - rest + (ALONE * rest if alone else self.unit * (rest > 0))

    def _first(self, tiles: int) -> int:
        """Return how many pixels' time the first tiles of an image take."""
        pixels = self.conv.d.pixels
        full = self.tiles == -(-pixels // PIXELS) and not self.conv.given
        step = PIXELS if full else self.unit
        blocks = -(-pixels // step)
        size = blocks // self.tiles
        longer = tiles * blocks // self.tiles - tiles * size  # tiles of one step more
        time = (tiles - longer) * self._time(size * step) + longer * self._time((size + 1) * step)
        if tiles == self.tiles:
            last = (blocks - (tiles - 1) * blocks // tiles) * step
            time += self._time(last - (blocks * step - pixels)) - self._time(last)
        return time + tiles * TILE_COST

    def _work(self, items: int) -> float:
        """Return that of the first items."""

        def begin(tile: int) -> int:
            images, tile = divmod(tile, self.tiles)
            return images * self._first(self.tiles) + self._first(tile)

        tile, part = divmod(items, self.parts)
        return begin(tile) + (begin(tile + 1) - begin(tile)) * part / self.parts if part else begin(tile)

    @property
    def longest(self) -> float:
        """The work of that thread, in pixels."""
        conv, images = self.conv, self.images
        threads = min(self.threads, max(1, images * self.tiles * self.parts))
        ends = [k * images * self.tiles * self.parts // threads for k in range(threads + 1)]  # `deal` in host_pool.cpp
        work = max(b - a for a, b in pairwise(map(self._work, ends)))
        if conv.given:
            groups = conv.groups * conv.joined
            return work * (1 + (self.parts * (TURNING + SAMPLE) - SAMPLE) * groups / conv.out_channels)
        return work + PACKING / threads + CROSSING * (threads > 1)


def cuts(conv: Convolution, images: int, threads: int) -> Iterator[Shares]:
    """Yield the ways to cut that are worth trying."""
    pixels = conv.d.pixels
    least = -(-pixels // PIXELS)
    for way in conv.ways:
        one = Shares(way, images, threads, least)
        most_tiles = max(1, min(least + threads - 1, -(-pixels // one.unit)))
        for tiles in range(least, most_tiles + 1, 1 + (most_tiles - least) // MOST_CUTS):
            most = min(-(-threads // (images * tiles)), conv.out_channels // LEAST_PART)
            for parts in range(1, max(1, most if way.given and way.groups * way.joined == 1 else 1) + 1):
                yield one._replace(tiles=tiles, parts=parts)


def choose_cut(conv: Convolution, images: int, threads: int) -> Shares:
    """Return the way to cut a call with least work: with weights as given or not, into tiles, and parts of outputs."""
    if not conv.d.pixels:
        return Shares(conv, images, threads, 0)
    return min(cuts(conv, images, threads), key=lambda way: way.longest)
