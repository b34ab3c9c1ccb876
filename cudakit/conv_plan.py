"""How a deformable convolution and its gradients are launched on a CPU: fused kernels whose columns stay in cache."""

from typing import NamedTuple

from cudakit.array import CPU
from cudakit.deform_geometry import GEOMETRY_FIELDS, Deformation, Integers, geometry_values
from cudakit.deform_plan import HOST_TILE, Form, constants, coordinates_from
from cudakit.errors import InvalidArgument
from cudakit.launch import Launch, load
from cudakit.layout import COPY_BYTES, Image, accumulator, add_copy, by_group, divides, itemsize, packed, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import Kernel
from cudakit.structs import pack_tail
from cudakit.workspace import ALIGNMENT

PIXELS = 96  # of an output tile: a multiple of HOST_TILE and of the rows that registers hold
BLOCK = 320
LINE_BYTES = 64
MOST_WORKSPACES = 6
SIMD_STEPS = 8  # multiply-adds that count as one step of work

CUT_FIELDS = tuple((f"cut.{name}", 1) for name in ("groups", "out_channels", "channel_block", "scratch"))
FORWARD_FIELDS = (
    *((name, 1) for name in ("input", "offset", "mask", "weight", "bias", "packed", "output", "scratch")),
    *(("items", 1), ("group_stride", 1), ("output_stride", 3)),
    *CUT_FIELDS,
    *GEOMETRY_FIELDS,
)
PACK, FORWARD = (
    Kernel("deform_conv.cu", name, "DeformConvParams", FORWARD_FIELDS, pointers=8)
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

    @property
    def accumulator_bytes(self) -> int:
        """Size of a number that sums are kept in."""
        return itemsize(accumulator(self.d.dtype))

    @property
    def padded(self) -> int:
        """Output channels of a group, as packed weights count them (`PANEL` in pieces.cuh)."""
        panel = 2 * LINE_BYTES // self.accumulator_bytes
        return -(-self.out_channels // (self.groups * panel)) * panel

    @property
    def packed_size(self) -> int:
        """Numbers of the packed weights."""
        return self.d.channels * self.d.taps * self.padded

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

    def prelude(self, layout: Image) -> tuple[tuple[str, str | int], ...]:
        """Return the constants of the kernels, which read images in that layout."""
        sizes = (((self.packed_size,), (1,)), (self.output.shape, self.output.strides), (layout.shape, layout.strides))
        found = constants(self.d, Form(HOST_TILE, 1, BLOCK), *sizes)
        return tuple((found | {"PIXELS": PIXELS, "BLOCK": BLOCK}).items())

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


class Reading(NamedTuple):
    """How an image is read: with the channels of a pixel as neighbours, all of them or, in a copy, an offset group's.

    A sample reads what one group has of a pixel. If the other groups' channels lay between that and what it has of the
    next pixel, few sets of the cache would have to hold all that a tile reads.
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


def reading(x: Image, groups: int) -> Reading:
    """Return how images are read by a convolution with that many offset groups."""
    if x.strides[1] == 1:
        return Reading(x, 1, copied=False)
    parts = groups if divides(x, groups) else 1
    return Reading(packed(by_group(x, parts).shape, x.dtype, channels_last=True), parts, copied=True)


def plan_forward(plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    d, x, wide = conv.d, conv.input, conv.accumulator_bytes
    item, read = itemsize(d.dtype), reading(conv.input, conv.d.groups)
    tiles = -(-d.pixels // PIXELS)
    image_bytes = read.strides[0] * item if read.copied else 0
    threads = min(target.threads, d.batch * tiles)
    most = Amount(threads, 1, images_at_once(d.batch, image_bytes, target.threads))
    amount = choose_amount(conv, most, Size(conv.packed_size * wide, conv.tile_size * wide, 0, image_bytes))
    weights = plan.workspace(conv.packed_size * wide)
    scratch = plan.workspace(amount.workers * conv.tile_size * wide)
    space = plan.workspace(amount.images * image_bytes) if read.copied else NULL
    prelude = conv.prelude(read.layout)
    cut = (*conv.cut(min(BLOCK, d.channels // d.groups)), conv.tile_size)

    def add(kernel: Kernel, count: int, items: int, work: int, pointers: tuple[Slot, ...]) -> None:
        geometry = geometry_values(d.part(count), read.strides)
        tail = pack_tail(kernel, items, read.group_stride(d), conv.output_strides, *cut, *geometry)
        plan.launch(Launch(load(kernel, prelude, CPU), tail, items, 1, work, amount.workers), *pointers)

    add(PACK, d.batch, conv.panels, conv.packed_size, (NULL, NULL, NULL, slots.weight, NULL, weights, NULL, NULL))
    for first in range(0, d.batch, amount.images):
        count = min(amount.images, d.batch - first)
        source = slots.input.at(first * x.strides[0] * item)
        if read.copied:
            old, new = by_group(part(x, count), read.parts), part(read.layout, count * read.parts)
            add_copy(plan, target, (source, old), (space, new), by_pixel=True)
        offset, mask = coordinates_from(d, first, slots.offset, slots.mask)
        to = output.at(first * conv.output.strides[0] * item)
        pointers = (space if read.copied else source, offset, mask, slots.weight, slots.bias, weights, to, scratch)
        add(FORWARD, count, count * tiles, count * conv.work, pointers)
