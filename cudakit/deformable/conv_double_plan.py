"""How the gradients of a deformable convolution's gradients are planned, on every device.

With columns c of the input x, the offsets p and the masks m, all gradients are derivatives of F = g W c(x, p, m). Where
W changes by W', and x, p and m in a direction in which c changes by c', the gradient of the change of F is

    by g:  W c' + W' c + b'     by W:  g c'     by x, p, m:  that of g W c' and of g W' c

The columns come from `deform_double_backward`, which takes g W and g W' as gradients by them. The products are those of
convolutions with kernels of one tap, whose images are the columns and whose offsets are zero.
"""

from dataclasses import replace

from cudakit.array import itemsize
from cudakit.deformable.column_double_plan import DoubleSlots, plan_double
from cudakit.deformable.column_plan import Columns
from cudakit.deformable.conv_call import Convolution, Slots, add_channel_fastest
from cudakit.deformable.conv_dispatch import plan_backward, plan_forward
from cudakit.layout import Image, add_copy, add_sum, packed
from cudakit.plan import NULL, Plan, Slot

NONE = Slots(NULL, NULL, NULL, NULL, NULL)


class DoubleBackward:
    """Appends the launches of one call.

    `slots` are those of the convolution's arrays, `tangents` of the gradients by their gradients.
    """

    def __init__(self, plan: Plan, conv: Convolution, slots: Slots, tangents: Slots, grad_output: Slot) -> None:
        self.plan, self.conv = plan, conv
        self.slots, self.tangents, self.grad_output = slots, tangents, grad_output
        d = conv.d
        self.item, group = itemsize(d.dtype), d.channels // conv.groups
        # [image][pixel][group][tap][channel of the group]: as images, each group has its channels together.
        pixel = d.channels * d.taps
        self.columns = Columns((d.pixels * pixel, 1, group, pixel), group, d.taps * group * (conv.groups > 1))
        self.product = self._product()
        zeros = d.batch * d.n * d.pixels * itemsize(d.coordinate_dtype)
        self.zeros = plan.workspace(zeros)
        plan.zero(self.zeros, zeros)
        self.weight, self.weight_tangent = (
            add_channel_fastest(plan, conv, slot) for slot in (slots.weight, tangents.weight)
        )

    def _product(self) -> Convolution:
        """Return the convolution that multiplies columns by weights with the channel fastest."""
        d, one, none = self.conv.d, (1,) * self.conv.d.n, (0,) * self.conv.d.n
        flat = d._replace(
            channels=d.channels * d.taps,
            offset_groups=1,
            space=d.out,
            channels_last=True,
            masked=False,
            kernel=one,
            stride=one,
            pad=none,
            dilation=one,
        )
        x = packed((flat.batch, flat.channels, *flat.space), d.dtype, channels_last=True)
        return replace(self.conv, d=flat, input=x, workspace=None)

    def _space(self) -> Slot:
        """Return the slot of new columns."""
        d = self.conv.d
        return self.plan.workspace(d.batch * d.channels * d.taps * d.pixels * self.item)

    def _by_columns(self, weight: Slot) -> Slot:
        """Return the slot of the gradients by columns that weights make of those by outputs."""
        if weight == NULL:
            return NULL
        to, arrays = self._space(), NONE._replace(offset=self.zeros, weight=weight)
        results = NONE._replace(input=to)
        plan_backward(self.plan, self.product, arrays, self.grad_output, results)
        return to

    def run(self, images: tuple[Image, Image | None], by_output: Slot, results: Slots) -> None:
        """Append what makes the gradients by the output's gradient and by the arrays, where they are wanted.

        `images` are the layouts of the input and of its tangent, if there is one. That by the bias is zero, and not
        among the `results`.
        """
        changed = any(slot != NULL for slot in (results.input, results.offset, results.mask))
        tangent = self._space() if by_output != NULL or results.weight != NULL else NULL
        samples = self._space() if by_output != NULL and self.weight_tangent != NULL else NULL
        given, along = self.slots, self.tangents
        where = DoubleSlots(
            *(given.input, given.offset, given.mask, self._by_columns(self.weight) if changed else NULL),
            *(along.input, along.offset, along.mask, self._by_columns(self.weight_tangent) if changed else NULL),
            samples=samples,
            samples_tangent=tangent,
            grad_input=results.input,
            grad_offset=results.offset,
            grad_mask=results.mask,
        )
        plan_double(self.plan, self.conv.d, images, self.columns, where)
        if by_output != NULL:
            self._add_outputs(tangent, samples, by_output)
        if results.weight != NULL:
            self._add_weights(tangent, results.weight)

    def _add_outputs(self, tangent: Slot, samples: Slot, result: Slot) -> None:
        """Append result = W c' + b' + W' c."""
        plan, conv = self.plan, self.conv
        arrays = NONE._replace(input=tangent, offset=self.zeros, weight=self.weight, bias=self.tangents.bias)
        if samples == NULL:
            plan_forward(plan, self.product, arrays, result)
            return
        size = conv.d.batch * conv.out_channels * conv.d.pixels
        both = plan.workspace(2 * size * self.item)
        plan_forward(plan, self.product, arrays, both)
        arrays = NONE._replace(input=samples, offset=self.zeros, weight=self.weight_tangent)
        plan_forward(plan, self.product, arrays, both.at(size * self.item))
        add_sum(plan, (both, conv.d.dtype), (result, conv.d.dtype), (size, 1, 2), (1, 0, size))

    def _add_weights(self, tangent: Slot, result: Slot) -> None:
        """Append result = g c'."""
        conv, arrays = self.conv, NONE._replace(input=tangent, offset=self.zeros, weight=self.weight)
        sums = result if conv.d.taps == 1 else self.plan.workspace(conv.weights * self.item)
        plan_backward(self.plan, self.product, arrays, self.grad_output, NONE._replace(weight=sums))
        if sums != result:
            tap_fastest, channel_fastest = conv.weight_layouts(conv.d.dtype)
            add_copy(self.plan, (sums, channel_fastest), (result, tap_fastest))
