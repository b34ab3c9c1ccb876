"""How a deformable convolution is launched on a CPU: fused kernels whose columns stay in cache."""

from typing import NamedTuple

from cudakit.array import CPU, itemsize
from cudakit.deformable.column_plan import coordinates_from
from cudakit.deformable.conv_host import (
    BLOCK,
    CUT_FIELDS,
    PIXELS,
    Amount,
    Convolution,
    Size,
    Slots,
    choose_amount,
    images_at_once,
    join,
    with_split,
)
from cudakit.deformable.conv_host_tiling import choose_cut
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, Integers, geometry_values
from cudakit.launch import Launch, lazy_kernel
from cudakit.layout import Image, accumulator, add_copy, by_group, divides, packed, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.source import Kernel
from cudakit.structs import pack_tail
from cudakit.workspace import aligned


class Pointers(NamedTuple):
    """The slots of both kernels, in the order of their parameters."""

    input: Slot = NULL
    offset: Slot = NULL
    mask: Slot = NULL
    weight: Slot = NULL
    bias: Slot = NULL
    packed: Slot = NULL
    split: Slot = NULL
    output: Slot = NULL
    scratch: Slot = NULL


FORWARD_FIELDS = (
    *((name, 1) for name in Pointers._fields),
    *(("items", 1), ("tiles", 1), ("parts", 1), ("group_stride", 1), ("output_stride", 3)),
    *CUT_FIELDS,
    *GEOMETRY_FIELDS,
)
PACK, FORWARD = (
    Kernel(f"{name}.cu", name, "DeformConvParams", FORWARD_FIELDS, pointers=len(Pointers._fields))
    for name in ("deform_conv_pack", "deform_conv")
)


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
        conv, d = join(conv), conv.d
        self.item, self.wide = itemsize(d.dtype), conv.accumulator_bytes
        self.read = reading(conv.input, d.groups)
        self.image_bytes = self.read.strides[0] * itemsize(self.read.layout.dtype) if self.read.copied else 0
        self.images = images_at_once(d.batch, self.image_bytes, target.threads)
        cut = choose_cut(with_split(conv, self._size), self.images, target.threads)
        self.conv, self.tiles, self.parts = cut.conv, cut.tiles, cut.parts
        self.block = self._block(self.conv)

    def _block(self, conv: Convolution) -> int:
        """Return the most channels of a chunk."""
        return min(conv.given_block if conv.given else BLOCK, conv.d.channels // conv.d.groups)

    def _packed_bytes(self, conv: Convolution) -> int:
        return 0 if conv.given else conv.packed_size(self._block(conv)) * self.wide

    def _split_bytes(self, conv: Convolution) -> int:
        """Return the size of the packed weights' parts (`split_at` in deform_conv.cuh)."""
        size = 2 * conv.split.data * conv.packed_size(self._block(conv))
        return aligned(4 * conv.panels) + size if size else 0

    def _scratch(self, conv: Convolution) -> int:
        """Return the numbers of one worker: a tile, and a piece's columns in parts or in the order of weights."""
        halves = 2 if conv.given else conv.split.values
        return conv.tile_size + PIXELS * BLOCK * halves // 2

    def _size(self, conv: Convolution) -> Size:
        fixed = self._packed_bytes(conv) + self._split_bytes(conv)
        return Size(fixed, self._scratch(conv) * self.wide, 0, self.image_bytes)

    def run(self) -> None:
        """Append all launches."""
        plan, conv, d, read = self.plan, self.conv, self.conv.d, self.read
        threads = min(self.target.threads, d.batch * self.tiles * self.parts)
        amount = choose_amount(conv, Amount(threads, 1, self.images), self._size(conv))
        weights = NULL if conv.given else plan.workspace(self._packed_bytes(conv))
        split = plan.workspace(self._split_bytes(conv)) if conv.split.data else NULL
        scratch = plan.workspace(amount.workers * self._scratch(conv) * self.wide)
        space = plan.workspace(amount.images * self.image_bytes) if read.copied else NULL
        if not conv.given:
            packing = Pointers(weight=self.slots.weight, packed=weights, split=split)
            self._launch(PACK, d, amount, conv.panels, conv.packed_size(self.block), packing)
        for first in range(0, d.batch, amount.images):
            count = min(amount.images, d.batch - first)
            source = self.slots.input.at(first * conv.input.strides[0] * self.item)
            if read.copied:
                old, new = by_group(part(conv.input, count), read.parts), part(read.layout, count * read.parts)
                add_copy(plan, self.target, (source, old), (space, new), by_pixel=True)
            offset, mask = coordinates_from(d, first, self.slots.offset, self.slots.mask)
            pointers = Pointers(
                *(space if read.copied else source, offset, mask, self.slots.weight, self.slots.bias),
                packed=weights,
                split=split,
                output=self.output.at(first * conv.output.strides[0] * self.item),
                scratch=scratch,
            )
            self._launch(FORWARD, d.part(count), amount, count * self.tiles * self.parts, count * conv.work, pointers)

    def _launch(
        self, kernel: Kernel, d: Deformation, amount: Amount, items: int, work: int, pointers: Pointers
    ) -> None:
        conv, read = self.conv, self.read
        cut = (*conv.cut(self.block), self._scratch(conv))
        geometry = geometry_values(d, read.strides)
        tail = pack_tail(
            kernel, items, self.tiles, self.parts, read.group_stride(d), conv.output.pixel_strides, *cut, *geometry
        )
        loaded = lazy_kernel(kernel, conv.prelude(read.layout, self.block), CPU)
        self.plan.launch(Launch(loaded, tail, items, 1, work, amount.workers), *pointers)


def plan_forward(plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    _Forward(plan, target, conv, slots, output).run()
