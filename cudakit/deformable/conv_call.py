"""One call of a deformable convolution, checked: what its plans start from on every device."""

from dataclasses import dataclass
from typing import NamedTuple

from cudakit.array import itemsize
from cudakit.deformable.geometry import Deformation
from cudakit.layout import Image, accumulator, add_copy, packed
from cudakit.plan import NULL, Plan, Slot


class Slots(NamedTuple):
    """The slots of a convolution's arrays."""

    input: Slot
    offset: Slot
    weight: Slot
    bias: Slot
    mask: Slot


@dataclass(frozen=True)
class Convolution:
    """One call; `output` may be the layout of the output's gradient.

    `workspace` are the bytes of temporary memory that it may take, None: any. `tf32`: factors may be rounded.
    """

    d: Deformation
    input: Image
    groups: int
    out_channels: int
    output: Image
    workspace: int | None
    tf32: bool

    @property
    def accumulator_bytes(self) -> int:
        """Size of a number that sums are kept in."""
        return itemsize(accumulator(self.d.dtype))

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group with one output (`is_depthwise` in pieces.cuh)."""
        return self.d.channels == self.out_channels == self.groups > 1

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.out_channels * (self.d.channels // self.groups) * self.d.taps

    def weight_layouts(self, dtype: str) -> tuple[Image, Image]:
        """Return weights as (outputs, channels, taps): as users have them, and in `dtype` with the channel fastest."""
        shape = (self.out_channels, self.d.channels // self.groups, self.d.taps)
        return packed(shape, self.d.dtype, channels_last=False), packed(shape, dtype, channels_last=True)


def add_channel_fastest(plan: Plan, conv: Convolution, slot: Slot) -> Slot:
    """Append the copy of weights, or of their tangents, with the channel fastest, and return its slot, or theirs."""
    if slot == NULL or conv.d.taps == 1:
        return slot
    to = plan.workspace(conv.weights * itemsize(conv.d.dtype))
    tap_fastest, channel_fastest = conv.weight_layouts(conv.d.dtype)
    add_copy(plan, (slot, tap_fastest), (to, channel_fastest))
    return to
