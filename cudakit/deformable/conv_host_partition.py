"""How the gradients of a deformable convolution are shared out to threads of a CPU."""

from collections.abc import Iterator
from math import gcd, prod
from typing import NamedTuple

from cudakit.array import LINE_BYTES
from cudakit.deformable.conv_host import BLOCK, GIVEN_STEP, PIXELS, Convolution
from cudakit.deformable.geometry import Deformation
from cudakit.layout import MOST_SUMS_BYTES, accumulator

FEWER_PIXELS, FEWER_PIXELS_IN_HALF_PRECISION = 2, 8  # than outputs, for weights to be used as given
CHANNEL_STEP = 16  # a chunk of channels is a multiple of it, where there are that many
SUMMING = 0.1  # what it takes to add up the gradients of spans, as a share of the rest
GATHERED = 96  # channels of small groups in a chunk
SHARED_CHANNELS = 64  # from which on a chunk is worth looking anew where its samples are


class Sharing(NamedTuple):
    """How the work is shared out: chunks of an offset group's channels, images at a time, and parts of an image."""

    parts: int  # chunks of a group
    block: int  # channels of a chunk
    slots: int
    spans: int  # each with a gradient of the image of its own

    def items(self, d: Deformation) -> int:
        """Return how many there are."""
        return self.slots * self.spans * self.parts * d.groups

    def longest(self, d: Deformation, threads: int) -> float:
        """Return the share of the thread with most to do, in images."""
        items = self.items(d)
        images = -(-d.batch // self.slots) * self.slots
        return -(-items // threads) / items * images * (1 + SUMMING * (self.spans > 1))


def gather(conv: Convolution) -> Convolution:
    """Return the call with as many small groups joined as suit vectors of channels (small_groups.cuh).

    Vectors should be full, and looked at once for many channels; outputs of all groups are read for every chunk.
    """
    if conv.joined == 1:
        return conv
    groups, line = conv.groups * conv.joined, LINE_BYTES // conv.accumulator_bytes
    own = conv.d.channels // groups

    def work(joined: int) -> float:
        width = joined * own
        return -(-width // line) * line / width * (1 + line / min(width, GATHERED)) + width / BLOCK / line

    joined = min((m for m in range(1, groups + 1) if groups % m == 0), key=work)
    return conv._replace(groups=groups // joined, joined=joined)


def as_given(conv: Convolution, threads: int) -> Convolution:
    """Return the call, with weights as given where they meet few pixels, and channels are enough for all threads.

    Columns are turned twice, weights packed and their gradients unpacked once. In half precision the order of weights
    stays, but not their numbers.
    """
    d, outputs = conv.d, conv.out_channels // conv.groups
    most = outputs // (FEWER_PIXELS if d.dtype == accumulator(d.dtype) else FEWER_PIXELS_IN_HALF_PRECISION)
    few = 0 < d.batch * d.pixels <= most and outputs >= GIVEN_STEP
    return conv._replace(given=few and conv.joined == 1 and conv.may_be_given and d.channels // GIVEN_STEP >= threads)


def share(conv: Convolution, threads: int) -> Sharing:
    """Give every thread images of its own where there are enough, else channels of its own, else pixels."""
    d = conv.d
    count = d.channels // d.groups
    if conv.given:
        parts = max(-(-count // conv.given_block), -(-threads // d.groups))
        block = -(-count // (parts * GIVEN_STEP)) * GIVEN_STEP
        return Sharing(-(-count // block), block, 1, 1)
    chunks = -(-count // _most(conv)) * d.groups
    if chunks >= 4 * threads or chunks % threads == 0:
        return next(_shared(conv, 1, 1))
    ways = [way for slots in (min(d.batch, threads), gcd(d.batch, threads)) for way in _shared(conv, slots, threads)]
    return min(ways, key=lambda way: (way.longest(d, threads), way.items(d)))


def _most(conv: Convolution) -> int:
    """Return how many channels a chunk has at most."""
    return BLOCK if conv.joined == 1 else min(GATHERED, conv.d.channels // conv.groups)


def _shared(conv: Convolution, slots: int, wanted: int) -> Iterator[Sharing]:
    """Share an image out: so that together with the slots there are as many items as wanted, or a multiple of them."""
    d = conv.d
    count = d.channels // d.groups
    alike = slots * d.groups  # items without any sharing
    room = MOST_SUMS_BYTES // (slots * d.channels * prod(d.space) * conv.accumulator_bytes)
    most = max(1, min(-(-d.pixels // PIXELS), room))

    def spans(parts: int) -> int:
        return min(most, -(-wanted // (alike * parts)))

    parts = max(-(-count // _most(conv)), min(count // SHARED_CHANNELS, -(-wanted // alike)))
    parts = max(parts, -(-wanted // (alike * spans(parts))))  # where there cannot be spans enough
    block = min(count, BLOCK, -(-count // (parts * CHANNEL_STEP)) * CHANNEL_STEP)
    parts = -(-count // block)
    yield Sharing(parts, block, slots, spans(parts))
    yield Sharing(parts, block, slots, min(most, wanted // gcd(alike * parts, wanted)))
