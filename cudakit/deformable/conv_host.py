"""One deformable convolution, and how a CPU cuts it so that columns stay in cache: groups, tiles, memory."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cudakit import checks
from cudakit.array import LINE_BYTES, itemsize
from cudakit.deformable.column_plan import HOST_TILE, Form, constants, few
from cudakit.deformable.conv_host_splitting import WHOLE, Splitting, choose_splitting
from cudakit.deformable.geometry import Deformation, Integers
from cudakit.layout import Image, accumulator, packed
from cudakit.plan import Slot
from cudakit.source import C_TYPES
from cudakit.staging import COPY_BYTES
from cudakit.workspace import ALIGNMENT

PIXELS = 96  # of an output tile: a multiple of HOST_TILE and of the rows that registers hold
BLOCK = 320  # numbers of a pixel's columns that are sampled, then multiplied, at a time
MOST_WORKSPACES = 6  # of a call
SIMD_STEPS = 8  # multiply-adds that count as one step of work

STEP = 32  # of a sum of split numbers

BLOCK_ENDS, SAMPLE = 8, 32  # see `join`
GIVEN_STEP = 32  # channels that pieces are multiples of, where weights are as given
PADDING = 16  # zeros that a column may meet before it is worth turning

CUT_FIELDS = tuple((f"cut.{name}", 1) for name in ("groups", "joined", "out_channels", "channel_block", "scratch"))


class Slots(NamedTuple):
    """The slots of a convolution's arrays."""

    input: Slot
    offset: Slot
    weight: Slot
    bias: Slot
    mask: Slot


class Convolution(NamedTuple):
    """One call, checked."""

    d: Deformation
    input: Image
    groups: int
    out_channels: int
    output: Image  # or its gradient
    workspace: int | None
    tf32: bool  # whether factors may be rounded
    split: Splitting = WHOLE
    joined: int = 1  # groups of the user's in each of these
    given: bool = False  # whether weights are used as users give them

    @property
    def accumulator_bytes(self) -> int:
        """Size of a number that sums are kept in."""
        return itemsize(accumulator(self.d.dtype))

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group with one output (`is_depthwise` in pieces.cuh)."""
        return self.d.channels == self.out_channels == self.groups * self.joined > 1

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.out_channels * (self.d.channels // (self.groups * self.joined)) * self.d.taps

    @property
    def may_be_given(self) -> bool:
        """Whether the products can use weights in the order in which users give them (given.cuh)."""
        d = self.d
        return (
            not self.depthwise
            and not self.split.data
            and BLOCK // d.taps >= GIVEN_STEP
            and not any(d.channels // groups % GIVEN_STEP for groups in (d.groups, self.groups))
        )

    @property
    def ways(self) -> Iterator["Convolution"]:
        """The call with weights packed or as given, as far as either is worth trying.

        Packed weights are padded with zeros, most of all where groups are joined; given ones meet their own columns
        alone.
        """
        given, outputs = self._replace(given=True), self.out_channels // self.groups
        if self.joined > 1:
            given = given._replace(groups=1, joined=self.groups * self.joined)
        sparse = self.joined > 1 or self.padded - outputs > PADDING
        if not (sparse and given.may_be_given):
            yield self
        if given.may_be_given and (sparse or outputs >= GIVEN_STEP):
            yield given

    @property
    def given_block(self) -> int:
        """Channels of a chunk where weights are as given: with all taps they are at most `BLOCK` numbers."""
        return BLOCK // self.d.taps // GIVEN_STEP * GIVEN_STEP

    @property
    def padded(self) -> int:
        """Output channels of a group, as packed weights count them (`PANEL` in pieces.cuh)."""
        panel = 2 * LINE_BYTES // self.accumulator_bytes
        return -(-self.out_channels // (self.groups * panel)) * panel

    def packed_size(self, channel_block: int) -> int:
        """Return the numbers of the packed weights, with the gaps between their pieces (`gap_of` in pieces.cuh)."""
        d, per_group = self.d, self.d.channels // self.groups
        chunks = d.groups * -(-d.channels // (d.groups * channel_block))
        rounds = -(-d.taps // (BLOCK // channel_block))
        pieces = (channel_block + per_group - 2) // per_group + 1
        gaps = chunks * rounds * pieces * (STEP - 1) if self.split.data else 0
        return (d.channels * d.taps + gaps) * self.padded

    @property
    def panels(self) -> int:
        """Items that pack weights."""
        return self.groups * self.padded * self.accumulator_bytes // (2 * LINE_BYTES)

    @property
    def tile_size(self) -> int:
        """Numbers of a tile's columns and outputs (`COLUMNS` and `output_row` in pieces.cuh)."""
        line = LINE_BYTES // self.accumulator_bytes
        return PIXELS * (BLOCK + 3 * line + self.groups * self.padded + line)

    @property
    def work(self) -> int:
        """Steps of one image."""
        d = self.d
        return d.channels * d.taps * d.pixels * (1 + self.out_channels // (self.groups * self.joined) // SIMD_STEPS)

    def prelude(self, layout: Image, channel_block: int) -> tuple[tuple[str, str | int], ...]:
        """Return the constants of the kernels, which read images in that layout."""
        weights = (self.packed_size(channel_block) * 2,)  # or their parts
        sizes = ((weights, (1,)), (self.output.shape, self.output.strides), (layout.shape, layout.strides))
        own, joined = self.d.channels // self.d.groups, self.d.channels // self.groups
        form = Form(HOST_TILE, 1, BLOCK, 0 if own % channel_block or joined % channel_block else few(channel_block))
        found = constants(self.d, form, *sizes)
        found |= {
            "PIXELS": PIXELS,
            "BLOCK": BLOCK,
            "SPLIT": self.split.data,
            "SPLIT_VALUES": self.split.values,
            "TILES": int(self.split.tiles),
            "GIVEN": int(self.given),
            "JOINED": int(self.joined > 1),
            "IMAGE": C_TYPES[layout.dtype][0],
        }
        return tuple(found.items())

    def cut(self, channel_block: int) -> Integers:
        """Return the values of `CUT_FIELDS` besides the scratch memory."""
        return (self.groups, self.joined, self.out_channels, channel_block)

    def weight_layouts(self, dtype: str) -> tuple[Image, Image]:
        """Return weights as (outputs, channels, taps): as users have them, and in `dtype` with the channel fastest."""
        shape = (self.out_channels, self.d.channels // self.groups, self.d.taps)
        return packed(shape, self.d.dtype, channels_last=False), packed(shape, dtype, channels_last=True)


def join(conv: Convolution) -> Convolution:
    """Return the call with small groups joined (pieces.cuh), for the least work.

    A column is multiplied with all outputs of its group, padded to panels. Costs that do not grow with their number are
    counted in outputs: a product's beginning and end, by its depth; a sample, by how well its channels fill vectors.
    """
    d, channels, outputs = conv.d, conv.d.channels // conv.groups, conv.out_channels // conv.groups
    line = LINE_BYTES // conv.accumulator_bytes

    def work(joined: int) -> float:
        width = min(channels * joined, d.channels // d.groups)
        padded = -(-outputs * joined // (2 * line)) * 2 * line
        return padded * (1 + BLOCK_ENDS / (width * d.taps)) + SAMPLE * -(-width // line) * line / width

    joined = min((m for m in range(1, conv.groups + 1) if conv.groups % m == 0), key=work)
    return conv._replace(groups=conv.groups // joined, joined=joined)


class Amount(NamedTuple):
    """How much is done at a time: threads, images whose weights' gradients are apart, images between two copies."""

    workers: int
    slots: int
    images: int


class Size(NamedTuple):
    """Bytes of temporary memory: fixed, and for each worker, slot and image, without the alignment of workspaces."""

    fixed: int
    worker: int
    slot: int
    image: int

    def of(self, amount: Amount) -> int:
        """Return the bytes of an amount."""
        aligned = (MOST_WORKSPACES + 1) * ALIGNMENT  # each, and the block that holds them
        return aligned + self.fixed + sum(one * many for one, many in zip(self[1:], amount, strict=True))


def choose_amount(conv: Convolution, most: Amount, size: Size) -> Amount:
    """Return the first of four amounts, from `most` down to the least, whose temporary memory the caller allows."""
    limit, fewer, least = conv.workspace, min(most.images, most.workers), Amount(1, 1, 1)
    checks.workspace(limit, size.of(least))
    candidates = (
        most,
        most._replace(images=fewer, slots=min(most.slots, fewer)),
        Amount(most.workers, 1, 1),
        least,
    )
    return next(amount for amount in candidates if limit is None or size.of(amount) <= limit)


def with_split(conv: Convolution, size: Callable[[Convolution], Size]) -> Convolution:
    """Return the call with numbers split, if it is worth it and the caller allows the memory that this takes."""
    d, split = conv.d, choose_splitting(conv.d.dtype, conv.tf32)
    divided = conv._replace(split=split)
    worth = (
        not conv.depthwise
        and not conv.given
        and conv.out_channels // conv.groups >= split.outputs
        and d.channels // max(d.groups, conv.groups) * d.taps >= split.depth
        and d.batch * d.pixels >= split.pixels
        and (conv.workspace is None or size(divided).of(Amount(1, 1, 1)) <= conv.workspace)
    )
    return divided if worth else conv


def images_at_once(batch: int, image_bytes: int, threads: int) -> int:
    """Return how many images to copy at a time, so that they stay in cache and every thread has one."""
    images = max(1, COPY_BYTES // image_bytes) if image_bytes else batch
    return min(batch, -(-images // threads) * threads)
