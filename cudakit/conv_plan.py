"""How a deformable convolution and its gradients are launched on a CPU: fused kernels whose columns stay in cache."""

from collections.abc import Callable
from typing import NamedTuple

from cudakit import amx
from cudakit.array import CPU
from cudakit.deform_geometry import GEOMETRY_FIELDS, Deformation, Integers, geometry_values
from cudakit.deform_plan import HOST_TILE, Form, constants, coordinates_from
from cudakit.errors import InvalidArgument
from cudakit.launch import Launch, load
from cudakit.layout import COPY_BYTES, Image, accumulator, add_copy, by_group, divides, itemsize, packed, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import C_TYPES, Kernel
from cudakit.structs import pack_tail
from cudakit.workspace import ALIGNMENT, aligned

PIXELS = 96  # of an output tile: a multiple of HOST_TILE and of the rows that registers hold
BLOCK = 320
LINE_BYTES = 64
MOST_WORKSPACES = 6
SIMD_STEPS = 8  # multiply-adds that count as one step of work

# Products by tile registers (split.cuh), which take a number of such an array in so many parts, one of a column in two.
PARTS = {"bfloat16": 1, "float16": 2, "float32": 2}  # the last, if it may be rounded
VALUE_PARTS = 2
STEP = 32  # of a sum
# Splitting pays where columns meet so many output channels for each part, and weights so many pixels.
LEAST_OUTPUTS, LEAST_PIXELS = 32, 256
LEAST_DEPTH = STEP

CUT_FIELDS = tuple((f"cut.{name}", 1) for name in ("groups", "out_channels", "channel_block", "scratch"))
FORWARD_FIELDS = (
    *((name, 1) for name in ("input", "offset", "mask", "weight", "bias", "packed", "split")),
    *((name, 1) for name in ("output", "scratch")),
    *(("items", 1), ("group_stride", 1), ("output_stride", 3)),
    *CUT_FIELDS,
    *GEOMETRY_FIELDS,
)
PACK, FORWARD = (
    Kernel("deform_conv.cu", name, "DeformConvParams", FORWARD_FIELDS, pointers=9)
    for name in ("deform_conv_pack", "deform_conv")
)


class Convolution(NamedTuple):
    """One call, checked."""

    d: Deformation
    input: Image
    groups: int
    out_channels: int
    output: Image  # or its gradient
    workspace: int | None
    tf32: bool  # whether float32 factors may be rounded
    parts: int = 0  # of a number, if tile registers multiply

    @property
    def accumulator_bytes(self) -> int:
        """Size of a number that sums are kept in."""
        return itemsize(accumulator(self.d.dtype))

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
        gaps = chunks * rounds * pieces * (STEP - 1) if self.parts else 0
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
        return d.channels * d.taps * d.pixels * (1 + self.out_channels // self.groups // SIMD_STEPS)

    def prelude(self, layout: Image, channel_block: int) -> tuple[tuple[str, str | int], ...]:
        """Return the constants of the kernels, which read images in that layout."""
        weights = (self.packed_size(channel_block) * 2,)  # or their parts
        sizes = ((weights, (1,)), (self.output.shape, self.output.strides), (layout.shape, layout.strides))
        found = constants(self.d, Form(HOST_TILE, 1, BLOCK), *sizes)
        return tuple(
            (found | {"PIXELS": PIXELS, "BLOCK": BLOCK, "AMX": self.parts, "IMAGE": C_TYPES[layout.dtype][0]}).items()
        )

    def cut(self, channel_block: int) -> Integers:
        """Return the values of `CUT_FIELDS` besides the scratch memory."""
        return (self.groups, self.out_channels, channel_block)

    @property
    def output_strides(self) -> Integers:
        """The output's strides (batch, channel, pixel)."""
        return (*self.output.strides[:2], self.output.strides[-1])


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
    """Return the largest amount up to `most` whose temporary memory the caller allows."""
    few = min(most.images, most.workers)
    candidates = (
        most,
        most._replace(images=few, slots=min(most.slots, few)),
        Amount(most.workers, 1, 1),
        Amount(1, 1, 1),
    )
    for amount in candidates:
        needed = size.of(amount)
        if conv.workspace is None or needed <= conv.workspace:
            return amount
    raise InvalidArgument("workspace", f"be at least {needed} bytes here", conv.workspace)


def with_tiles(conv: Convolution, size: Callable[[Convolution], Size]) -> Convolution:
    """Return the call with tile registers, if it is worth it and the caller allows the memory that they take."""
    d, tiled = conv.d, conv._replace(parts=PARTS.get(conv.d.dtype, 0))
    worth = (
        tiled.parts > 0
        and (conv.tf32 or d.dtype != "float32")
        and conv.out_channels // conv.groups >= LEAST_OUTPUTS * tiled.parts
        and d.channels // max(d.groups, conv.groups) * d.taps >= LEAST_DEPTH
        and d.batch * d.pixels >= LEAST_PIXELS
        and (conv.workspace is None or size(tiled).of(Amount(1, 1, 1)) <= conv.workspace)
    )
    return tiled if worth and amx.available() else conv


def images_at_once(batch: int, image_bytes: int, threads: int) -> int:
    """Return how many images to copy at a time, so that they stay in cache and every thread has one."""
    images = max(1, COPY_BYTES // image_bytes) if image_bytes else batch
    return min(batch, -(-images // threads) * threads)


class Slots(NamedTuple):
    """The slots of a convolution's arrays."""

    input: Slot
    offset: Slot
    weight: Slot
    bias: Slot
    mask: Slot


class Access(NamedTuple):
    """How an image or its gradient lies: the channels of a pixel side by side, in a copy those of an offset group only.

    A sample reaches what one group has of a pixel. If the other groups' channels lay between that and what it has of
    the next pixel, few sets of the cache would have to hold all that a tile reaches.
    """

    layout: Image  # an image is `parts` images of it
    parts: int
    copied: bool

    @property
    def strides(self) -> Integers:
        """The strides of a whole image."""
        return (self.parts * self.layout.strides[0], *self.layout.strides[1:])

    def group_stride(self, d: Deformation) -> int:
        """Return the step from one offset group to the next."""
        return self.layout.strides[0] if self.parts > 1 else d.channels // d.groups


def reading(x: Image, groups: int) -> Access:
    """Return how images are read by a convolution with that many offset groups.

    Copies of half precision are in float32: widened once, for many taps. To widen float16 takes eight instructions,
    which is worth a copy of its own; to widen bfloat16, one.
    """
    if x.strides[1] == 1 and x.dtype != "float16":
        return Access(x, 1, copied=False)
    parts = groups if divides(x, groups) else 1
    layout = packed(by_group(x, parts).shape, accumulator(x.dtype), channels_last=True)
    return Access(layout, parts, copied=True)


class _Forward:
    """Appends the launches of one call, whose arrays are `slots` and `output`."""

    def __init__(self, plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
        self.plan, self.target, self.slots, self.output = plan, target, slots, output
        d = conv.d
        self.item, self.wide, self.block = itemsize(d.dtype), conv.accumulator_bytes, min(BLOCK, d.channels // d.groups)
        self.read = reading(conv.input, d.groups)
        self.image_bytes = self.read.strides[0] * itemsize(self.read.layout.dtype) if self.read.copied else 0
        self.tiles = -(-d.pixels // PIXELS)
        self.conv = with_tiles(conv, self._size)

    def _packed_bytes(self, conv: Convolution) -> int:
        return conv.packed_size(self.block) * self.wide

    def _split_bytes(self, conv: Convolution) -> int:
        """Return the size of the packed weights' parts (`split_at` in deform_conv.cu)."""
        return aligned(4 * conv.panels) + 2 * conv.parts * conv.packed_size(self.block) if conv.parts else 0

    def _scratch(self, conv: Convolution) -> int:
        """Return the numbers of one worker: a tile, and a piece's columns in parts."""
        return conv.tile_size + (PIXELS * BLOCK * VALUE_PARTS // 2 if conv.parts else 0)

    def _size(self, conv: Convolution) -> Size:
        fixed = self._packed_bytes(conv) + self._split_bytes(conv)
        return Size(fixed, self._scratch(conv) * self.wide, 0, self.image_bytes)

    def run(self) -> None:
        """Append all launches."""
        plan, conv, d, read = self.plan, self.conv, self.conv.d, self.read
        threads = min(self.target.threads, d.batch * self.tiles)
        most = Amount(threads, 1, images_at_once(d.batch, self.image_bytes, self.target.threads))
        amount = choose_amount(conv, most, self._size(conv))
        weights = plan.workspace(self._packed_bytes(conv))
        split = plan.workspace(self._split_bytes(conv)) if conv.parts else NULL
        scratch = plan.workspace(amount.workers * self._scratch(conv) * self.wide)
        space = plan.workspace(amount.images * self.image_bytes) if read.copied else NULL
        packing = (NULL, NULL, NULL, self.slots.weight, NULL, weights, split, NULL, NULL)
        self._launch(PACK, d, amount, conv.panels, conv.packed_size(self.block), packing)
        for first in range(0, d.batch, amount.images):
            count = min(amount.images, d.batch - first)
            source = self.slots.input.at(first * conv.input.strides[0] * self.item)
            if read.copied:
                old, new = by_group(part(conv.input, count), read.parts), part(read.layout, count * read.parts)
                add_copy(plan, self.target, (source, old), (space, new), by_pixel=True)
            offset, mask = coordinates_from(d, first, self.slots.offset, self.slots.mask)
            to = self.output.at(first * conv.output.strides[0] * self.item)
            arrays = (space if read.copied else source, offset, mask, self.slots.weight, self.slots.bias)
            pointers = (*arrays, weights, split, to, scratch)
            self._launch(FORWARD, d.part(count), amount, count * self.tiles, count * conv.work, pointers)

    def _launch(
        self, kernel: Kernel, d: Deformation, amount: Amount, items: int, work: int, pointers: tuple[Slot, ...]
    ) -> None:
        conv, read = self.conv, self.read
        cut = (*conv.cut(self.block), self._scratch(conv))
        geometry = geometry_values(d, read.strides)
        tail = pack_tail(kernel, items, read.group_stride(d), conv.output_strides, *cut, *geometry)
        loaded = load(kernel, conv.prelude(read.layout, self.block), CPU)
        self.plan.launch(Launch(loaded, tail, items, 1, work, amount.workers), *pointers)


def plan_forward(plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    _Forward(plan, target, conv, slots, output).run()
