"""What the gradients of gradients have in common: arrays that are packed, copied where they are not.

Second derivatives are wanted seldom, so their kernels (duals.cuh) know few layouts, to which whole batches are copied:
channels as neighbours, or, where there are few, the data format's.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from math import gcd, prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import CPU, Spec, itemsize
from cudakit.errors import InvalidArgument
from cudakit.layout import HOST_VECTOR, Image, add_copy, add_sums, cuda_lanes, cuda_vector, packed
from cudakit.plan import NULL, Output, Plan, Slot, Target
from cudakit.rounding import rounded_parts, sum_dtype

FEW = 16  # channels up to which it takes exactly as many


def wanting(check: Callable[..., Any], needs: tuple[str, ...]) -> Callable[..., Any]:
    """Return the check of an operator's options for that of its gradients' gradients, of which these are needed."""

    @wraps(check)  # with its annotations
    def options(*arguments: Any) -> Any:
        return check(*arguments)._replace(needs=needs)

    return options


def check_directions(names: Sequence[str], given: Sequence[Spec | None], like: Sequence[Spec | None]) -> None:
    """Check gradients by gradients, each of which looks as the array whose gradient was taken."""
    for name, spec, array in zip(names, given, like, strict=True):
        if spec is None:
            continue
        of = name.removeprefix("grad_grad_")
        if array is None:
            raise InvalidArgument(name, f"be None where {of} is", f"shape {spec.shape}")
        checks.same_dtype(name, spec, of, array.dtype)
        checks.shape(name, spec, array.shape)


def add_packed(plan: Plan, slot: Slot, x: Image, *, last: bool = True) -> Slot:
    """Return the slot of an image that lies packed in this order: its own, or that of a copy, which is appended."""
    layout = packed(x.shape, x.dtype, channels_last=last)
    if slot == NULL or (x.strides == layout.strides and x.aligned):
        return slot
    space = plan.workspace(x.shape[0] * layout.strides[0] * itemsize(x.dtype))
    add_copy(plan, (slot, x), (space, layout))
    return space


class Result(NamedTuple):
    """A result that may lie otherwise while it is made: written, or added to, in so many `sums` for each element."""

    made: Image
    final: Image
    sums: int

    @classmethod
    def written(cls, shape: tuple[int, ...], dtype: str, *, last: bool, neighbours: bool = True) -> "Result":
        """Return that of shape (N, C, S...), made with neighbouring channels or not."""
        made, final = (packed(shape, dtype, channels_last=order) for order in (neighbours, last))
        return cls(made, final, 0)

    @classmethod
    def added(
        cls, shape: tuple[int, ...], dtype: str, target: Target, terms: int, *, last: bool, neighbours: bool = True
    ) -> "Result":
        """Return one to which up to so many `terms` are added, in the dtype and the number of parts for them."""
        made, final = cls.written(shape, dtype, last=last, neighbours=neighbours)[:2]
        made = made._replace(dtype=sum_dtype(dtype, target))
        return cls(made, final, max(rounded_parts(dtype, target, terms), 1))

    @property
    def in_place(self) -> bool:
        """Whether it is made where it is wanted."""
        return self.made == self.final and self.sums <= 1

    def output(self, shape: tuple[int, ...], *, empty: bool) -> Output:
        """Return what to allocate: with zeros, where it is added to, or nothing is written."""
        return Output(shape, self.final.dtype, zero=empty or (self.sums > 0 and self.in_place))

    def begin(self, plan: Plan, result: Slot) -> Slot:
        """Return the slot to make it in."""
        if result == NULL or self.in_place:
            return result
        size = max(self.sums, 1) * prod(self.made.shape) * itemsize(self.made.dtype)
        space = plan.workspace(size)
        if self.sums:
            plan.zero(space, size)
        return space

    def end(self, plan: Plan, made: Slot, result: Slot) -> None:
        """Append what brings it to where it is wanted."""
        if made != result:
            add_sums(plan, max(self.sums, 1), (made, self.made), (result, self.final))


def choose_vector(channels: int, dtype: str, items: int, target: Target, run: int = 0) -> tuple[int, int]:
    """Return how many lanes share an item, and how many of its channels each takes at a time.

    `run`: how many lie next to each other, if not all.
    """
    if target.device == CPU:
        most = run or channels
        vector = HOST_VECTOR
        while vector > FEW and vector >= 2 * most:
            vector //= 2
        return 1, most if most <= FEW else gcd(run, vector)
    vector = cuda_vector(gcd(channels, run), dtype)
    return cuda_lanes(channels, vector, items), vector
