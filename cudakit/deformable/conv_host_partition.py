"""How the gradients of a deformable convolution are shared out to threads of a CPU."""

from collections.abc import Iterator
from dataclasses import replace
from math import gcd, prod
from typing import NamedTuple

from cudakit.arithmetic import ceil_div, round_up
from cudakit.array import LINE_BYTES
from cudakit.deformable.conv_host import BLOCK, GIVEN_STEP, PIXELS, HostConvolution
from cudakit.deformable.geometry import Deformation
from cudakit.layout import MOST_SUMS_BYTES, accumulator

FEWER_PIXELS, FEWER_PIXELS_IN_HALF_PRECISION = 2, 8  # than outputs, for weights to be used as they are
CHANNEL_STEP = 16  # a chunk of channels is a multiple of it, where there are that many
SUMMING = 0.1  # what it takes to add up the gradients of spans, as a share of the rest
GATHERED = 96  # channels of small groups in a chunk
SHARED_CHANNELS = 64  # from which on a chunk is worth looking anew where its samples are


class Partition(NamedTuple):
    """How the work is cut into items: by channels of an offset group, by images, and by pixels of an image."""

    chunks: int  # of an offset group's channels
    chunk_channels: int
    image_sets: int
    spans: int  # of an image's pixels, each with a gradient of the image of its own

    def items(self, d: Deformation) -> int:
        """Return how many there are."""
        return self.image_sets * self.spans * self.chunks * d.offset_groups

    def longest(self, d: Deformation, threads: int) -> float:
        """Return the share of the thread with most to do, in images."""
        items = self.items(d)
        images = round_up(d.batch, self.image_sets)
        return ceil_div(items, threads) / items * images * (1 + SUMMING * (self.spans > 1))


def join_for_gradients(conv: HostConvolution) -> HostConvolution:
    """Return the call with as many small groups joined as suit vectors of channels (small_groups.cuh).

    Vectors should be full, and looked at once for many channels; outputs of all groups are read for every chunk.
    """
    if conv.joined == 1:
        return conv
    groups, line = conv.groups, LINE_BYTES // conv.accumulator_bytes
    own = conv.d.channels // groups

    def work(joined: int) -> float:
        width = joined * own
        return round_up(width, line) / width * (1 + line / min(width, GATHERED)) + width / BLOCK / line

    return replace(conv, joined=min((m for m in range(1, groups + 1) if groups % m == 0), key=work))


def with_given_weights(conv: HostConvolution, threads: int) -> HostConvolution:
    """Return the call, with weights as given where they meet few pixels, and channels are enough for all threads.

    Columns are turned twice, weights packed and their gradients unpacked once. In half precision the order of weights
    stays, but not their numbers.
    """
    d, outputs = conv.d, conv.out_channels // conv.joined_groups
    most = outputs // (FEWER_PIXELS if d.dtype == accumulator(d.dtype) else FEWER_PIXELS_IN_HALF_PRECISION)
    few = 0 < d.batch * d.pixels <= most and outputs >= GIVEN_STEP
    given = few and conv.joined == 1 and conv.may_use_given_weights and d.channels // GIVEN_STEP >= threads
    return replace(conv, given_weights=given)


def choose_partition(conv: HostConvolution, threads: int) -> Partition:
    """Give every thread images of its own where there are enough, else channels of its own, else pixels."""
    d = conv.d
    count = d.channels // d.offset_groups
    if conv.given_weights:
        chunks = max(ceil_div(count, conv.given_chunk), ceil_div(threads, d.offset_groups))
        channels = ceil_div(count, chunks * GIVEN_STEP) * GIVEN_STEP
        return Partition(ceil_div(count, channels), channels, 1, 1)
    chunks = ceil_div(count, _most_channels(conv)) * d.offset_groups
    if chunks >= 4 * threads or chunks % threads == 0:
        return next(_partitions(conv, 1, 1))
    sets = min(d.batch, threads), gcd(d.batch, threads)
    found = [partition for image_sets in sets for partition in _partitions(conv, image_sets, threads)]
    return min(found, key=lambda partition: (partition.longest(d, threads), partition.items(d)))


def _most_channels(conv: HostConvolution) -> int:
    """Return how many channels a chunk has at most."""
    return BLOCK if conv.joined == 1 else min(GATHERED, conv.d.channels // conv.joined_groups)


def _partitions(conv: HostConvolution, image_sets: int, wanted: int) -> Iterator[Partition]:
    """Cut an image so that together with the sets there are as many items as wanted, or a multiple of them."""
    d = conv.d
    count = d.channels // d.offset_groups
    uncut = image_sets * d.offset_groups  # items
    room = MOST_SUMS_BYTES // (image_sets * d.channels * prod(d.space) * conv.accumulator_bytes)
    most = max(1, min(ceil_div(d.pixels, PIXELS), room))

    def spans(chunks: int) -> int:
        return min(most, ceil_div(wanted, uncut * chunks))

    chunks = max(ceil_div(count, _most_channels(conv)), min(count // SHARED_CHANNELS, ceil_div(wanted, uncut)))
    chunks = max(chunks, ceil_div(wanted, uncut * spans(chunks)))  # where there cannot be spans enough
    channels = min(count, BLOCK, ceil_div(count, chunks * CHANNEL_STEP) * CHANNEL_STEP)
    chunks = ceil_div(count, channels)
    yield Partition(chunks, channels, image_sets, spans(chunks))
    yield Partition(chunks, channels, image_sets, min(most, wanted // gcd(uncut * chunks, wanted)))
