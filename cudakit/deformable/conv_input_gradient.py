"""The gradient by the input of a deformable convolution on a GPU, which several launches add to."""

from cudakit.array import itemsize
from cudakit.deformable.column_plan import Columns
from cudakit.deformable.conv_cut import Convolution, Slots
from cudakit.deformable.gradient_plan import Adding, corner_terms, flat_masks, gradient_layouts
from cudakit.layout import add_sums, part
from cudakit.plan import NULL, Plan, Slot, Target
from cudakit.rounding import add_anchors, flat, rounded_parts


class InputGradient:
    """The gradient by the input of one call, added up for a few images at a time: in place, or apart and then copied.

    Attributes
    ----------
    layout : Image
        How it lies while it is added up.
    adding : Adding
        In how many sums.
    image_bytes : int
        Temporary memory of one image.
    anchors : Slot
        Of sums that are the same in any order; null: of others.
    """

    def __init__(self, target: Target, conv: Convolution, columns: Columns, result: Slot) -> None:
        d = conv.d
        self._conv, self._result = conv, result
        self._final, self.layout = gradient_layouts(d, target, columns)
        terms = corner_terms(d) * (conv.out_channels // conv.groups)  # products of outputs' gradients and weights
        self._terms, self.adding = terms, Adding(rounded=rounded_parts(d.dtype, target, terms))
        apart = result != NULL and (self.layout != self._final or self.adding.rounded > 0)
        self.image_bytes = self.layout.strides[0] * self.adding.sums * itemsize(self.layout.dtype) * apart

    def allocate(self, plan: Plan, target: Target, images: int, slots: Slots, grad_output: Slot) -> None:
        """Take the memory for so many images at a time, and append what finds the anchors."""
        self._plan, self._target = plan, target
        self._total, self.anchors = NULL, NULL
        if self.image_bytes:
            d, weights = self._conv.d, flat(self._conv.weights, self._conv.d.dtype)
            factors = [(grad_output, self._conv.output), (slots.weight, weights), (slots.mask, flat_masks(d))]
            self.anchors = add_anchors(plan, target, [factors], self._terms)
            self._total = plan.workspace(images * self.image_bytes)

    def begin(self, first: int, count: int) -> Slot:
        """Return where to add that of these images, zeroed; null where it is not wanted."""
        if self._result == NULL:
            return NULL
        added = self._total if self.image_bytes else self._goal(first)
        size = self.image_bytes or self._final.strides[0] * itemsize(self._final.dtype)
        self._plan.zero(added, count * size, self._target.device)
        return added

    def end(self, first: int, count: int) -> None:
        """Append what brings it to where it is wanted."""
        if self.image_bytes:
            source, goal = (self._total, part(self.layout, count)), (self._goal(first), part(self._final, count))
            add_sums(self._plan, self._target, self.adding.sums, source, goal)

    def _goal(self, first: int) -> Slot:
        return self._result.at(first * self._final.strides[0] * itemsize(self._final.dtype))
