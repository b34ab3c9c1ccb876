"""Images in rounds, some at a time: copied to another layout before kernels take them, or added up apart."""

from collections.abc import Iterator
from math import prod

from cudakit.array import CPU, itemsize
from cudakit.layout import Image, add_copy, add_sums
from cudakit.plan import NULL, Plan, Slot, Target

COPY_BYTES = 4 << 20  # of a batch that is copied to another layout at a time, for a CPU's caches
CUDA_COPY_BYTES = 64 << 20  # likewise, to keep a GPU busy


def images_at_a_time(x: Image, target: Target) -> int:
    """Return how many to copy at a time, so that copies stay in cache, or take little memory on a GPU."""
    size = prod(x.shape[1:]) * itemsize(x.dtype)
    step = max(1, (COPY_BYTES if target.device == CPU else CUDA_COPY_BYTES) // size)
    if target.device == CPU:
        step += -step % target.threads
    return max(1, min(x.shape[0], step))


class Staged:
    """Images as kernels and products take them: where the caller has them, or some at a time in a copy.

    Parameters
    ----------
    plan : Plan
        What to append copies to.
    users : Image
        How the caller has them.
    copy : Image, optional
        How they are copied, if they are.
    images : int, optional
        How many are copied at a time, in rounds; by default as many as stay in cache, or all where none is copied.
    """

    def __init__(self, plan: Plan, users: Image, copy: Image | None, images: int = 0) -> None:
        self._plan, self._users, self._copy = plan, users, copy
        self._item = itemsize(users.dtype)
        self._images = images or (images_at_a_time(users, plan.target) if copy else max(users.shape[0], 1))
        self._space = plan.workspace(self._images * copy.strides[0] * self._item) if copy else NULL
        self.layout = copy or users

    def at(self, base: Slot, first: int, pixel: int = 0) -> Slot:
        """Return the slot of a round's images from the first and from this pixel on; `base` is the caller's."""
        return self._space if self._copy else self._of_user(base, first, pixel)

    def _of_user(self, base: Slot, first: int, pixel: int = 0) -> Slot:
        strides = self._users.strides
        return base.at((first * strides[0] + pixel * strides[-1]) * self._item)

    def move(self, base: Slot, first: int, count: int, *, back: bool = False) -> None:
        """Append the copy of a round's images from the caller's, or `back` there, if they are copied."""
        if self._copy:
            ends = (
                (self._of_user(base, first), self._users.with_batch(count)),
                (self._space, self._copy.with_batch(count)),
            )
            add_copy(self._plan, *(ends[::-1] if back else ends))

    def rounds(self, base: Slot, batch: int) -> Iterator[tuple[int, int]]:
        """Yield (first image, images) of each round of a batch after appending their copy."""
        for first in range(0, batch, self._images):
            count = min(self._images, batch - first)
            self.move(base, first, count)
            yield first, count


class Summed:
    """A gradient by images that kernels add up: where it is wanted, or apart and then copied there.

    Parameters
    ----------
    plan : Plan
        What to append to.
    goal : Slot
        Where it is wanted; null: it is not.
    final, made : Image
        How it lies there, and while it is added up.
    sums : int
        For each element, in as many images one behind the other.
    apart : bool
        Whether it is added up apart.
    images : int
        Of how many at a time.
    fresh : bool
        Whether `goal` has not been zeroed.
    """

    def __init__(
        self,
        plan: Plan,
        goal: Slot,
        final: Image,
        made: Image,
        *,
        sums: int,
        apart: bool,
        images: int,
        fresh: bool = False,
    ) -> None:
        self._plan, self._goal, self._final, self._made = plan, goal, final, made
        self._sums, self._zeroes = sums, (apart or fresh) and not plan.target.clears
        self._image = final.strides[0] * itemsize(final.dtype)
        self._bytes = made.strides[0] * itemsize(made.dtype) * sums
        self._space = plan.workspace(images * self._bytes) if apart and goal != NULL else NULL

    def begin(self, first: int, count: int) -> Slot:
        """Return where to add that of a round's images, after appending what zeroes it; null where it is not wanted."""
        if self._goal == NULL:
            return NULL
        added = self._goal.at(first * self._image) if self._space == NULL else self._space
        if self._zeroes:
            self._plan.zero(added, count * self._bytes)
        return added

    def end(self, first: int, count: int) -> None:
        """Append what brings it to where it is wanted."""
        if self._space != NULL:
            goal = (self._goal.at(first * self._image), self._final.with_batch(count))
            add_sums(self._plan, self._sums, (self._space, self._made.with_batch(count)), goal)
