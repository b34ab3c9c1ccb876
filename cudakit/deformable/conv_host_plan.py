"""How a deformable convolution is launched on a CPU: fused kernels whose columns stay in cache."""

from typing import NamedTuple

from cudakit.array import itemsize
from cudakit.deformable.column_plan import coordinates_from
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.deformable.conv_host import BLOCK, CUT_FIELDS, PIXELS, HostConvolution, join_groups, with_split
from cudakit.deformable.conv_host_memory import Concurrency, Footprint, choose_concurrency, images_per_round
from cudakit.deformable.conv_host_tiling import choose_tiling
from cudakit.deformable.geometry import GEOMETRY_FIELDS, Deformation, Integers, geometry_values
from cudakit.layout import Image, accumulator, add_copy, packed
from cudakit.plan import NULL, Plan, Slot
from cudakit.source import Kernel
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


class Storage(NamedTuple):
    """How an image or its gradient lies: the channels of a pixel side by side, in a copy those of an offset group only.

    A sample reaches what one group has of a pixel. If the other groups' channels lay between that and what it has of
    the next pixel, few sets of the cache would have to hold all that a tile reaches.
    """

    layout: Image  # an image is `groups` images of it
    groups: int
    copied: bool

    @property
    def strides(self) -> Integers:
        """The strides of a whole image."""
        return (self.groups * self.layout.strides[0], *self.layout.strides[1:])

    @property
    def copy_bytes(self) -> int:
        """Size of the copy of one image, if there is one."""
        return self.strides[0] * itemsize(self.layout.dtype) * self.copied

    def group_stride(self, d: Deformation) -> int:
        """Return the step from one offset group to the next."""
        return self.layout.strides[0] if self.groups > 1 else d.channels // d.offset_groups


def choose_storage(x: Image, groups: int) -> Storage:
    """Return how images are read by a convolution with that many offset groups.

    Copies of half precision are in float32: widened once, for many taps. To widen float16 takes eight instructions,
    which is worth a copy of its own; to widen bfloat16, one.
    """
    if x.strides[1] == 1 and x.dtype != "float16":
        return Storage(x, 1, copied=False)
    groups = groups if x.may_split_groups(groups) else 1
    layout = packed(x.split_groups(groups).shape, accumulator(x.dtype), channels_last=True)
    return Storage(layout, groups, copied=True)


class _Forward:
    """Appends the launches of one call, whose arrays are `slots` and `output`."""

    def __init__(self, plan: Plan, call: Convolution, slots: Slots, output: Slot) -> None:
        self.plan, self.slots, self.output = plan, slots, output
        threads = plan.target.threads
        conv, d = join_groups(HostConvolution.of(call)), call.d
        self.item_bytes = itemsize(d.dtype)
        self.storage = choose_storage(conv.input, d.offset_groups)
        self.images = images_per_round(d.batch, self.storage.copy_bytes, threads)
        tiling = choose_tiling(with_split(conv, self._footprint), self.images, threads)
        self.conv, self.tiles, self.output_parts = tiling.conv, tiling.tiles, tiling.output_parts
        self.chunk_channels = self._chunk_channels(self.conv)

    def _chunk_channels(self, conv: HostConvolution) -> int:
        """Return the most channels of a chunk."""
        return min(conv.given_chunk if conv.given_weights else BLOCK, conv.d.channels // conv.d.offset_groups)

    def _packed_bytes(self, conv: HostConvolution) -> int:
        return 0 if conv.given_weights else conv.packed_size(self._chunk_channels(conv)) * conv.accumulator_bytes

    def _split_bytes(self, conv: HostConvolution) -> int:
        """Return the size of the packed weights' parts (`split_at` in deform_conv.cuh)."""
        size = 2 * conv.split.array_parts * conv.packed_size(self._chunk_channels(conv))
        return aligned(4 * conv.panels) + size if size else 0

    def _scratch(self, conv: HostConvolution) -> int:
        """Return the numbers of one thread: a tile, and a piece's columns in parts or in the order of weights."""
        halves = 2 if conv.given_weights else conv.split.column_parts
        return conv.tile_size + PIXELS * BLOCK * halves // 2

    def _scratch_bytes(self, conv: HostConvolution) -> int:
        return self._scratch(conv) * conv.accumulator_bytes

    def _footprint(self, conv: HostConvolution) -> Footprint:
        fixed = self._packed_bytes(conv) + self._split_bytes(conv)
        return Footprint(fixed, self._scratch_bytes(conv), 0, self.storage.copy_bytes)

    def run(self) -> None:
        """Append all launches."""
        plan, conv, d, storage = self.plan, self.conv, self.conv.d, self.storage
        most = Concurrency(min(plan.target.threads, d.batch * self.tiles * self.output_parts), 1, self.images)
        threads, _, images = choose_concurrency(most, self._footprint(conv), conv.workspace)
        weights = NULL if conv.given_weights else plan.workspace(self._packed_bytes(conv))
        split = plan.workspace(self._split_bytes(conv)) if conv.split.array_parts else NULL
        scratch = plan.workspace(threads * self._scratch_bytes(conv))
        copy = plan.workspace(images * storage.copy_bytes) if storage.copied else NULL
        if not conv.given_weights:
            packing = Pointers(weight=self.slots.weight, packed=weights, split=split)
            self._launch(PACK, d, threads, conv.panels, conv.packed_size(self.chunk_channels), packing)
        for first in range(0, d.batch, images):
            count = min(images, d.batch - first)
            source = self.slots.input.at(first * conv.input.strides[0] * self.item_bytes)
            if storage.copied:
                old = conv.input.with_batch(count).split_groups(storage.groups)
                new = storage.layout.with_batch(count * storage.groups)
                add_copy(plan, (source, old), (copy, new), by_pixel=True)
            offset, mask = coordinates_from(d, first, self.slots.offset, self.slots.mask)
            pointers = Pointers(
                *(copy if storage.copied else source, offset, mask, self.slots.weight, self.slots.bias),
                packed=weights,
                split=split,
                output=self.output.at(first * conv.output.strides[0] * self.item_bytes),
                scratch=scratch,
            )
            items = count * self.tiles * self.output_parts
            self._launch(FORWARD, d.with_batch(count), threads, items, count * conv.work, pointers)

    def _launch(self, kernel: Kernel, d: Deformation, threads: int, items: int, work: int, pointers: Pointers) -> None:
        conv, storage = self.conv, self.storage
        values = (
            *(self.tiles, self.output_parts, storage.group_stride(d), conv.output.pixel_strides),
            *conv.cut_values(self.chunk_channels, self._scratch(conv)),
            *geometry_values(d, storage.strides),
        )
        constants = conv.constants(storage.layout, self.chunk_channels)
        self.plan.launch(kernel, constants, pointers, items, values, work=work, threads=threads)


def plan_forward(plan: Plan, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    _Forward(plan, conv, slots, output).run()
