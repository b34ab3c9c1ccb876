"""How a deformable convolution and its gradients are launched on a GPU: columns, and matrix products by cuBLAS.

Only `Multiply` needs a GPU.
"""

from cudakit.array import itemsize
from cudakit.deformable.column_gradient_plan import Col2imSlots, add_gradients
from cudakit.deformable.column_plan import coordinates_from
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.deformable.conv_cuda_blocks import Block, BlockedCall, columns_of
from cudakit.deformable.conv_cuda_input_gradient import InputGradient
from cudakit.layout import Image, accumulator, add_copy
from cudakit.plan import NULL, Plan, Slot
from cudakit.product import Product
from cudakit.rounding import anchor_bytes


def turned(strides: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the strides of the transposed matrices."""
    row, column, matrix = strides
    return column, row, matrix


def plan_forward(plan: Plan, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    call = BlockedCall(plan, conv, slots, turns=conv.groups > 1)
    d, depth = conv.d, call.depth
    for first, count, blocks in call.rounds():
        if slots.bias != NULL:
            goal = call.outputs.layout.with_batch(count)
            spread = Image(goal.shape, (0, 1, *(0,) * d.n), d.dtype)
            add_copy(plan, (slots.bias, spread), (call.outputs.at(output, first), goal))
        for block in blocks:
            call.sample(block)
            of = call.operands(block)
            product = Product(
                *(d.dtype, d.dtype, (of.pixels, call.outputs_of_group, depth), of.matrices),
                a=of.columns,
                b=(1, depth, of.weights),
                c=of.outputs,
                add=slots.bias != NULL,
                tf32=conv.tf32,
            )
            to = call.outputs.at(output, block.first, block.first_pixel)
            plan.multiply(product, call.columns, call.weight, to)
        call.outputs.move(output, first, count, back=True)


class _Backward:
    """Appends the gradients of one call; `results` are the slots of the gradients, null where not wanted."""

    def __init__(self, plan: Plan, conv: Convolution, slots: Slots, grad: Slot, results: Slots) -> None:
        self.conv, self.grad_output, self.results = conv, grad, results
        d = conv.d
        wide = itemsize(accumulator(d.dtype))
        self.by_input = InputGradient(plan.target, conv, columns_of(d, conv.groups), results.input)
        self.slopes = results.offset != NULL or results.mask != NULL
        weights = conv.weights * wide * (results.weight != NULL)
        self.reads = self.slopes or results.weight != NULL
        self.call = BlockedCall(
            *(plan, conv, slots),
            reads=self.reads,
            turns=bool(weights) or conv.groups > 1,
            grad=None if results.input == NULL else self.by_input.layout,
            image_bytes=self.by_input.image_bytes,
            fixed_bytes=weights + anchor_bytes(plan.target),
        )
        self.by_input.allocate(plan, self.call.images, slots, grad)
        self.weights = plan.workspace(weights) if weights else NULL
        if weights:
            plan.zero(self.weights, weights)

    def run(self) -> None:
        """Append all launches."""
        call, results, d = self.call, self.results, self.conv.d
        for first, count, blocks in call.rounds():
            call.outputs.move(self.grad_output, first, count)
            added = self.by_input.total.begin(first, count)
            for block in blocks:
                self._visit(block, added)
            self.by_input.total.end(first, count)
        if results.weight != NULL:
            tap_fastest, channel_fastest = self.conv.weight_layouts(accumulator(d.dtype))
            source = (self.weights, channel_fastest)
            add_copy(call.plan, source, (results.weight, tap_fastest))

    def _visit(self, block: Block, grad_input: Slot) -> None:
        """Append what one block's columns are for."""
        call, results = self.call, self.results
        if self.slopes or results.input != NULL:
            self._multiply_columns(block)
            d = call.visit(block)
            offset, mask = coordinates_from(self.conv.d, block.first, call.slots.offset, call.slots.mask)
            grads = coordinates_from(self.conv.d, block.first, results.offset, results.mask)
            slots = Col2imSlots(
                *(call.image(block.first) if self.reads else NULL, offset, mask, call.columns),
                samples=call.columns if results.weight != NULL else NULL,
                grad_input=grad_input,
                grad_offset=grads[0],
                grad_mask=grads[1],
                anchors=self.by_input.anchors,
            )
            x, grad = call.inputs.layout.with_batch(block.images), self.by_input.layout.with_batch(block.images)
            columns, accumulation = columns_of(d, self.conv.groups), self.by_input.accumulation
            add_gradients(call.plan, d, x, grad, columns, slots, accumulation)
        else:
            call.sample(block)
        if results.weight != NULL:
            self._multiply_weights(block)

    def _multiply_columns(self, block: Block) -> None:
        """Append columns = grad_output @ weights."""
        call, d, of = self.call, self.conv.d, self.call.operands(block)
        product = Product(
            *(d.dtype, d.dtype, (of.pixels, call.depth, call.outputs_of_group), of.matrices),
            a=of.outputs,
            b=(call.depth, 1, of.weights),
            c=of.columns,
            add=False,
            tf32=self.conv.tf32,
        )
        call.plan.multiply(product, self._grad_of(block), call.weight, call.columns)

    def _multiply_weights(self, block: Block) -> None:
        """Append weights += grad_output.T @ columns.

        The pixels of all images are one sum: its length can occupy a GPU, where the size of the weights cannot.
        """
        call, d, of = self.call, self.conv.d, self.call.operands(block)
        product = Product(
            *(d.dtype, accumulator(d.dtype), (call.outputs_of_group, call.depth, of.pixels), of.matrices),
            a=turned(of.outputs),
            b=of.columns,
            c=(call.depth, 1, of.weights),
            add=True,
            tf32=self.conv.tf32,
        )
        call.plan.multiply(product, self._grad_of(block), call.columns, self.weights)

    def _grad_of(self, block: Block) -> Slot:
        """Return the slot of the outputs' gradients."""
        return self.call.outputs.at(self.grad_output, block.first, block.first_pixel)


def plan_backward(plan: Plan, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    _Backward(plan, conv, slots, grad_output, results).run()
