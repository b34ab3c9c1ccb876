"""How a deformable convolution and its gradients are launched on a GPU: columns of a few images, and matrix products.

Columns lie as [image][group][pixel][tap][channel of the group], weights as [group][output][tap][channel of the group]:
each product reads its operands as they are and writes its result in the caller's layout. Work goes in blocks of whole
images, or of some pixels of one, so that memory does not grow with the batch. Only `Multiply` needs a GPU.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from cudakit.array import itemsize
from cudakit.conv_cut import MOST_WORKSPACES, Convolution
from cudakit.conv_plan import Slots
from cudakit.deform_geometry import Deformation
from cudakit.deform_gradient_plan import Gradients, add_gradients, gradient_layouts
from cudakit.deform_plan import Columns, add_im2col, coordinates_from, wants_copy, wants_neighbours
from cudakit.errors import InvalidArgument
from cudakit.layout import Image, accumulator, add_copy, packed, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.product import Multiply, Product
from cudakit.workspace import ALIGNMENT

# Of a block: its product should have several tiles for every processor of a large GPU, and take longer than to launch.
COLUMN_BYTES = 128 << 20
FEWEST_PIXELS = 64  # of a block


class Block(NamedTuple):
    """Images, and pixels of each, whose columns exist at the same time."""

    first: int
    images: int
    first_pixel: int
    pixels: int


def columns_of(d: Deformation, groups: int) -> Columns:
    """Return the layout of a block's columns."""
    count, pixels = d.channels // groups, d.visited
    strides = (pixels * d.taps * d.channels, 1, count, d.taps * count)
    return Columns(strides, count, pixels * d.taps * count * (groups > 1))


class Work:
    """What the launches of one call share.

    Parameters
    ----------
    plan, target
        What to append to, and for what.
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
    grad : Image, optional
        How the gradient of the input lies, where it is wanted.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        conv: Convolution,
        slots: Slots,
        *,
        reads: bool = True,
        grad: Image | None = None,
        image_bytes: int = 0,
        fixed_bytes: int = 0,
    ) -> None:
        self.plan, self.target, self.conv, self.slots = plan, target, conv, slots
        d, x = conv.d, conv.input
        self.item = itemsize(d.dtype)
        self.depth = d.taps * d.channels // conv.groups
        self.outputs = conv.out_channels // conv.groups
        neighbours = wants_neighbours(d, columns_of(d, conv.groups), target)
        self.copied = reads and wants_copy(x, grad, neighbours=neighbours)
        last = d.last or neighbours
        self.layout = packed(x.shape, x.dtype, channels_last=last) if self.copied or not reads else x
        copy = d.channels * prod(d.space) * self.item * self.copied
        self.weight_bytes = conv.out_channels * self.depth * self.item
        fixed = MOST_WORKSPACES * ALIGNMENT + fixed_bytes + self.weight_bytes
        self.images, self.pixels = self._block_size(fixed, image_bytes + copy)
        self.space = plan.workspace(self.images * copy) if self.copied else NULL
        self.columns = plan.workspace(self.images * self.pixels * d.taps * d.channels * self.item)
        self.weight = self._weights()

    def _block_size(self, fixed: int, image: int) -> tuple[int, int]:
        """Return how many images, and pixels of each, a block has; `image` are the bytes of one besides its columns."""
        d, limit = self.conv.d, self.conv.workspace
        pixel = d.taps * d.channels * self.item
        least = fixed + image + min(d.pixels, FEWEST_PIXELS) * pixel
        if limit is not None and limit < least:
            raise InvalidArgument("workspace", f"be at least {least} bytes here", limit)
        room = COLUMN_BYTES if limit is None else min(COLUMN_BYTES, limit - fixed - image)
        pixels = max(min(d.pixels, FEWEST_PIXELS), min(d.pixels, room // pixel))
        if pixels < d.pixels:
            return 1, pixels
        images = max(1, COLUMN_BYTES // (pixel * pixels))
        if limit is not None:
            images = min(images, max(1, (limit - fixed) // (image + pixel * pixels)))
        return min(d.batch, images), pixels

    def _weights(self) -> Slot:
        """Return the slot of the weights with the channel fastest."""
        if self.conv.d.taps == 1:
            return self.slots.weight
        to = self.plan.workspace(self.weight_bytes)
        tap_fastest, channel_fastest = self.weight_layouts(self.conv.d.dtype)
        add_copy(self.plan, self.target, (self.slots.weight, tap_fastest), (to, channel_fastest))
        return to

    def weight_layouts(self, dtype: str) -> tuple[Image, Image]:
        """Return weights as (outputs, channels, taps): as the caller has them, and with the channel fastest."""
        shape = (self.conv.out_channels, self.conv.d.channels // self.conv.groups, self.conv.d.taps)
        return packed(shape, self.conv.d.dtype, channels_last=False), packed(shape, dtype, channels_last=True)

    def rounds(self) -> Iterator[tuple[int, int, list[Block]]]:
        """Yield (first image, images, blocks) after appending the copy of these images."""
        d, x = self.conv.d, self.conv.input
        for first in range(0, d.batch, self.images):
            count = min(self.images, d.batch - first)
            if self.copied:
                source = self.slots.input.at(first * x.strides[0] * self.item)
                to = (self.space, part(self.layout, count))
                add_copy(self.plan, self.target, (source, part(x, count)), to)
            starts = range(0, d.pixels, self.pixels)
            yield first, count, [Block(first, count, at, min(self.pixels, d.pixels - at)) for at in starts]

    def image(self, first: int) -> Slot:
        """Return the slot of a round's images."""
        return self.space if self.copied else self.slots.input.at(first * self.layout.strides[0] * self.item)

    def visit(self, block: Block) -> Deformation:
        """Return the deformation of a block."""
        return self.conv.d._replace(batch=block.images, first=block.first_pixel, some=block.pixels)

    def sample(self, block: Block) -> None:
        """Append the columns of a block."""
        d = self.visit(block)
        offset, mask = coordinates_from(self.conv.d, block.first, self.slots.offset, self.slots.mask)
        slots = (self.image(block.first), offset, mask, self.columns)
        add_im2col(self.plan, self.target, d, part(self.layout, block.images), columns_of(d, self.conv.groups), slots)

    def multiply(self, product: Product, *slots: Slot) -> None:
        """Append a product."""
        self.plan.multiply(Multiply(product, self.target.device), *slots)

    def output_at(self, base: Slot, block: Block) -> Slot:
        """Return the slot of a block's outputs, or of their gradients."""
        batch, _, pixel = self.conv.output_strides
        return base.at((block.first * batch + block.first_pixel * pixel) * self.item)


def plan_forward(plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    work = Work(plan, target, conv, slots)
    d, item = conv.d, work.item
    batch, channel, pixel = conv.output_strides
    if slots.bias != NULL:
        spread = Image(conv.output.shape, (0, 1, *(0,) * d.n), d.dtype)
        add_copy(plan, target, (slots.bias, spread), (output, conv.output))
    for _, _, blocks in work.rounds():
        for block in blocks:
            work.sample(block)
            size = block.pixels * work.depth  # of a group's columns
            together = conv.groups == 1
            product = Product(
                *(d.dtype, d.dtype, (block.pixels, work.outputs, work.depth)),
                block.images if together else conv.groups,
                a=(work.depth, 1, size),
                b=(1, work.depth, 0 if together else work.outputs * work.depth),
                c=(pixel, channel, batch if together else work.outputs * channel),
                add=slots.bias != NULL,
                tf32=conv.tf32,
            )
            for i in range(1 if together else block.images):
                columns = work.columns.at(i * conv.groups * size * item)
                to = work.output_at(output, block).at(i * batch * item)
                work.multiply(product, columns, work.weight, to)


class _Backward:
    """Appends the gradients of one call; `results` are the slots of the gradients, null where not wanted."""

    def __init__(self, plan: Plan, target: Target, conv: Convolution, slots: Slots, grad: Slot, results: Slots) -> None:
        self.conv, self.grad_output, self.results = conv, grad, results
        d = conv.d
        wide = itemsize(accumulator(d.dtype))
        self.final, self.grad = gradient_layouts(d, target, columns_of(d, conv.groups))
        self.slopes = results.offset != NULL or results.mask != NULL
        self.image_bytes = self.grad.strides[0] * wide * (results.input != NULL and self.grad != self.final)
        self.turned = packed(conv.output.shape, d.dtype, channels_last=True)
        weights = conv.out_channels * d.taps * (d.channels // conv.groups) * wide * (results.weight != NULL)
        turns = bool(weights) and conv.groups == 1 and d.batch > 1 and conv.output.strides != self.turned.strides
        turned_bytes = self.turned.strides[0] * itemsize(d.dtype) * turns
        reads = self.slopes or results.weight != NULL
        self.work = Work(
            *(plan, target, conv, slots),
            reads=reads,
            grad=None if results.input == NULL else self.grad,
            image_bytes=self.image_bytes + turned_bytes,
            fixed_bytes=weights,
        )
        self.total = plan.workspace(self.work.images * self.image_bytes) if self.image_bytes else NULL
        self.space = plan.workspace(self.work.images * turned_bytes) if turns and self.work.images > 1 else NULL
        self.weights = plan.workspace(weights) if weights else NULL
        if weights:
            plan.zero(self.weights, weights, target.device)

    def run(self) -> None:
        """Append all launches."""
        work, results, d = self.work, self.results, self.conv.d
        for first, count, blocks in work.rounds():
            goal = results.input.at(first * self.final.strides[0] * work.item)
            added = self.total if self.image_bytes else goal
            if added != NULL:
                size = self.image_bytes or self.final.strides[0] * work.item
                work.plan.zero(added, count * size, work.target.device)
            for block in blocks:
                self._visit(block, added)
            if self.image_bytes:
                source = (self.total, part(self.grad, count))
                add_copy(work.plan, work.target, source, (goal, part(self.final, count)))
        if results.weight != NULL:
            tap_fastest, channel_fastest = work.weight_layouts(accumulator(d.dtype))
            source = (self.weights, channel_fastest)
            add_copy(work.plan, work.target, source, (results.weight, tap_fastest))

    def _visit(self, block: Block, grad_input: Slot) -> None:
        """Append what one block's columns are for."""
        work, results = self.work, self.results
        if self.slopes or results.input != NULL:
            self._multiply_columns(block)
            d = work.visit(block)
            offset, mask = coordinates_from(self.conv.d, block.first, work.slots.offset, work.slots.mask)
            grads = coordinates_from(self.conv.d, block.first, results.offset, results.mask)
            reads = self.slopes or results.weight != NULL
            slots = Gradients(
                *(work.image(block.first) if reads else NULL, offset, mask, work.columns),
                samples=work.columns if results.weight != NULL else NULL,
                grad_input=grad_input if results.input != NULL else NULL,
                grad_offset=grads[0],
                grad_mask=grads[1],
            )
            x, grad = part(work.layout, block.images), part(self.grad, block.images)
            add_gradients(work.plan, work.target, d, x, grad, columns_of(d, self.conv.groups), slots)
        else:
            work.sample(block)
        if results.weight != NULL:
            self._multiply_weights(block)

    def _multiply_columns(self, block: Block) -> None:
        """Append columns = grad_output @ weights."""
        work, conv = self.work, self.conv
        batch, channel, pixel = conv.output_strides
        size, together = block.pixels * work.depth, conv.groups == 1
        product = Product(
            *(conv.d.dtype, conv.d.dtype, (block.pixels, work.depth, work.outputs)),
            block.images if together else conv.groups,
            a=(pixel, channel, batch if together else work.outputs * channel),
            b=(work.depth, 1, 0 if together else work.outputs * work.depth),
            c=(work.depth, 1, size),
            add=False,
            tf32=self.conv.tf32,
        )
        for i in range(1 if together else block.images):
            grad = work.output_at(self.grad_output, block).at(i * batch * work.item)
            work.multiply(product, grad, work.weight, work.columns.at(i * conv.groups * size * work.item))

    def _multiply_weights(self, block: Block) -> None:
        """Append weights += grad_output.T @ columns.

        Without groups the pixels of all images are one sum, where they are evenly spaced in memory: the length of a sum
        can occupy a GPU, where the size of the weights cannot. Else one image after the other adds to the same sums.
        """
        work, conv = self.work, self.conv
        grad, (batch, channel, pixel) = work.output_at(self.grad_output, block), conv.output_strides
        if self.space != NULL:
            source = (grad, part(conv.output, block.images))
            add_copy(work.plan, work.target, source, (self.space, part(self.turned, block.images)))
            grad, (batch, channel, pixel) = self.space, (self.turned.strides[0], 1, conv.out_channels)
        together = conv.groups == 1 and batch == block.pixels * pixel
        size = block.pixels * work.depth
        product = Product(
            conv.d.dtype,
            accumulator(conv.d.dtype),
            (work.outputs, work.depth, block.pixels * (block.images if together else 1)),
            conv.groups,
            a=(channel, pixel, work.outputs * channel),
            b=(work.depth, 1, size),
            c=(work.depth, 1, work.outputs * work.depth),
            add=True,
            tf32=self.conv.tf32,
        )
        for i in range(1 if together else block.images):
            columns = work.columns.at(i * conv.groups * size * work.item)
            work.multiply(product, grad.at(i * batch * work.item), columns, self.weights)


def plan_backward(
    plan: Plan, target: Target, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots
) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    _Backward(plan, target, conv, slots, grad_output, results).run()
