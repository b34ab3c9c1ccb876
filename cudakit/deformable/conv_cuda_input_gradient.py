"""The gradient by the input of a deformable convolution on a GPU, which several launches add to."""

from cudakit.array import itemsize
from cudakit.deformable.column_gradient_plan import Accumulation, corner_terms, gradient_layouts, mask_row
from cudakit.deformable.column_plan import Columns
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.rounding import add_anchors, one_row, rounded_parts
from cudakit.staging import Summed


class InputGradient:
    """The gradient by the input of one call, added up for a few images at a time: in place, or apart and then copied.

    Attributes
    ----------
    layout : Image
        How it lies while it is added up.
    accumulation : Accumulation
        In how many sums.
    image_bytes : int
        Temporary memory of one image.
    total : Summed
        It, once there is memory for it.
    anchors : Slot
        Of sums that are the same in any order; null: of others.
    """

    def __init__(self, target: Target, conv: Convolution, columns: Columns, result: Slot) -> None:
        d = conv.d
        self._conv, self._result = conv, result
        self._final, self.layout = gradient_layouts(d, target, columns)
        terms = corner_terms(d) * (conv.out_channels // conv.groups)  # products of outputs' gradients and weights
        self._terms, self.accumulation = terms, Accumulation(rounded_parts=rounded_parts(d.dtype, target, terms))
        apart = result != NULL and (self.layout != self._final or self.accumulation.rounded_parts > 0)
        self.image_bytes = self.layout.strides[0] * self.accumulation.sums * itemsize(self.layout.dtype) * apart

    def allocate(self, plan: Plan, images: int, slots: Slots, grad_output: Slot) -> None:
        """Take the memory for so many images at a time, and append what finds the anchors."""
        self.anchors = NULL
        if self.image_bytes:
            d, weights = self._conv.d, one_row(self._conv.weights, self._conv.d.dtype)
            factors = [(grad_output, self._conv.output), (slots.weight, weights), (slots.mask, mask_row(d))]
            self.anchors = add_anchors(plan, [factors], self._terms)
        self.total = Summed(
            *(plan, self._result, self._final, self.layout),
            sums=self.accumulation.sums,
            apart=self.image_bytes > 0,
            images=images,
            fresh=True,
        )
