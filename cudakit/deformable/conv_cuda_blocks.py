"""What is shared by the products of a convolution on a GPU: its blocks, and how their operands lie.

Columns lie as [group][image][pixel][tap][channel of the group], weights as [group][output][tap][channel of the group].
Where outputs lie channels-last, one product takes all images for each group; with several groups, and for gradients of
weights, they are copied so. Else one product for each image reads and writes the caller's layout. Work goes in blocks
of whole images, or of some pixels of one, so that memory does not grow with the batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cudakit import checks
from cudakit.array import itemsize
from cudakit.deformable.column_plan import (
    Columns,
    Im2colSlots,
    add_im2col,
    coordinates_from,
    wants_copy,
    wants_neighbours,
)
from cudakit.deformable.conv_call import Convolution, Slots, add_channel_fastest
from cudakit.deformable.geometry import Deformation
from cudakit.layout import Image, packed
from cudakit.plan import Plan, Slot
from cudakit.product import is_operand
from cudakit.staging import Staged
from cudakit.workspace import ALIGNMENT

# Of a block: its product should have several tiles for every processor of a large GPU, and take longer than to launch.
COLUMN_BYTES = 128 << 20
FEWEST_PIXELS = 64  # of a block
MOST_WORKSPACES = 6  # of a call


class Block(NamedTuple):
    """Images, and pixels of each, whose columns exist at the same time."""

    first: int
    images: int
    first_pixel: int
    pixels: int


class Operands(NamedTuple):
    """Outputs, columns and weights of a block as matrices: strides (pixel, number, matrix), and how many there are."""

    pixels: int
    matrices: int
    outputs: tuple[int, int, int]
    columns: tuple[int, int, int]
    weights: int  # from one matrix to the next


def columns_of(d: Deformation, groups: int) -> Columns:
    """Return the layout of a block's columns."""
    count = d.channels // groups
    image = d.visited * d.taps * count
    return Columns((image, 1, count, d.taps * count), count, d.batch * image * (groups > 1))


class BlockedCall:
    """What the launches of one call share.

    Parameters
    ----------
    plan : Plan
        What to append to.
    conv : Convolution
        The call.
    slots : Slots
        Of its arrays.
    image_bytes : int
        Temporary memory of one image besides its columns and its copy.
    fixed_bytes : int
        Temporary memory besides.
    reads : bool
        Whether the input is read.
    turns : bool
        Whether outputs, or their gradients, should be channels-last where there are several images.
    grad : Image, optional
        How the gradient of the input lies, where it is wanted.
    """

    def __init__(
        self,
        plan: Plan,
        conv: Convolution,
        slots: Slots,
        *,
        reads: bool = True,
        turns: bool,
        grad: Image | None = None,
        image_bytes: int = 0,
        fixed_bytes: int = 0,
    ) -> None:
        self.plan, self.conv, self.slots = plan, conv, slots
        d, x = conv.d, conv.input
        self.item_bytes = itemsize(d.dtype)
        self.depth = d.taps * d.channels // conv.groups
        self.outputs_of_group = conv.out_channels // conv.groups
        neighbours = wants_neighbours(d, columns_of(d, conv.groups), plan.target)
        copied = reads and wants_copy(x, grad, neighbours=neighbours)
        image = packed(x.shape, x.dtype, channels_last=d.channels_last or neighbours)
        image_bytes += image.strides[0] * self.item_bytes * copied
        turned = packed(conv.output.shape, d.dtype, channels_last=True)
        turns = turns and d.batch > 1 and conv.output.strides != turned.strides
        image_bytes += turned.strides[0] * self.item_bytes * turns
        weight_bytes = conv.weights * self.item_bytes
        fixed = MOST_WORKSPACES * ALIGNMENT + fixed_bytes + weight_bytes
        self.images, self.pixels = self._block_size(fixed, image_bytes)
        self.inputs = Staged(plan, x if reads else image, image if copied else None, self.images)
        self.outputs = Staged(plan, conv.output, turned if turns and self.images > 1 else None, self.images)
        self.columns = plan.workspace(self.images * self.pixels * d.taps * d.channels * self.item_bytes)
        self.weight = add_channel_fastest(plan, conv, slots.weight)

    def _block_size(self, fixed: int, image: int) -> tuple[int, int]:
        """Return how many images, and pixels of each, a block has; `image` are the bytes of one besides its columns."""
        d, limit = self.conv.d, self.conv.workspace
        pixel = d.taps * d.channels * self.item_bytes
        least = fixed + image + min(d.pixels, FEWEST_PIXELS) * pixel
        checks.workspace(limit, least)
        room = COLUMN_BYTES if limit is None else min(COLUMN_BYTES, limit - fixed - image)
        pixels = max(min(d.pixels, FEWEST_PIXELS), min(d.pixels, room // pixel))
        if pixels < d.pixels:
            return 1, pixels
        images = max(1, COLUMN_BYTES // (pixel * pixels))
        if limit is not None:
            images = min(images, max(1, (limit - fixed) // (image + pixel * pixels)))
        return min(d.batch, images), pixels

    def rounds(self) -> Iterator[tuple[int, int, list[Block]]]:
        """Yield (first image, images, blocks) after appending the copy of these images."""
        d = self.conv.d
        for first, count in self.inputs.rounds(self.slots.input, d.batch):
            starts = range(0, d.pixels, self.pixels)
            yield first, count, [Block(first, count, at, min(self.pixels, d.pixels - at)) for at in starts]

    def image(self, first: int) -> Slot:
        """Return the slot of a round's images."""
        return self.inputs.at(self.slots.input, first)

    def visit(self, block: Block) -> Deformation:
        """Return the deformation of a block."""
        return self.conv.d._replace(batch=block.images, first_pixel=block.first_pixel, some_pixels=block.pixels)

    def sample(self, block: Block) -> None:
        """Append the columns of a block."""
        d = self.visit(block)
        offset, mask = coordinates_from(self.conv.d, block.first, self.slots.offset, self.slots.mask)
        slots = Im2colSlots(self.image(block.first), offset, mask, self.columns)
        x, columns = self.inputs.layout.with_batch(block.images), columns_of(d, self.conv.groups)
        add_im2col(self.plan, d, x, columns, slots)

    def operands(self, block: Block) -> Operands:
        """Return how a block's products see their operands."""
        y = self.outputs.layout
        batch, channel, pixel = y.pixel_strides
        if block.images > block.pixels == 1:  # the stride of a single pixel may be anything, as that of a single image
            pixel = batch
        weights, pixels = self.outputs_of_group * self.depth, block.images * block.pixels
        outputs = (pixel, channel, self.outputs_of_group * channel)
        # Of one pixel and one output strides may be anything, but not of several images of that.
        merges = batch == block.pixels * pixel and is_operand(outputs, pixels, self.outputs_of_group)
        if block.images == 1 or merges:
            return Operands(pixels, self.conv.groups, outputs, (self.depth, 1, pixels * self.depth), weights)
        assert self.conv.groups == 1
        columns = (self.depth, 1, block.pixels * self.depth)
        return Operands(block.pixels, block.images, (pixel, channel, batch), columns, 0)
