"""How much temporary memory a deformable convolution takes on a CPU, by how much of it is done at the same time."""

from typing import NamedTuple

from cudakit import checks
from cudakit.arithmetic import round_up
from cudakit.staging import COPY_BYTES
from cudakit.workspace import ALIGNMENT

MOST_WORKSPACES = 6  # of a call


class Concurrency(NamedTuple):
    """What is done at the same time.

    The images of a round are copied together; gradients of weights are added up apart for each set of images.
    """

    threads: int
    image_sets: int
    images_per_round: int


class Footprint(NamedTuple):
    """Bytes of temporary memory without the alignment of workspaces: fixed, and for each of what is concurrent."""

    fixed: int
    per_thread: int
    per_image_set: int
    per_image: int

    def total(self, concurrency: Concurrency) -> int:
        """Return the bytes that so much takes."""
        alignment = (MOST_WORKSPACES + 1) * ALIGNMENT  # of each, and of the block that holds them
        return alignment + self.fixed + sum(one * many for one, many in zip(self[1:], concurrency, strict=True))


LEAST = Concurrency(1, 1, 1)


def fits(footprint: Footprint, concurrency: Concurrency, limit: int | None) -> bool:
    """Whether the caller's limit allows so much."""
    return limit is None or footprint.total(concurrency) <= limit


def choose_concurrency(most: Concurrency, footprint: Footprint, limit: int | None) -> Concurrency:
    """Return the first of four, from `most` down to the least, that the caller's limit in bytes allows."""
    checks.workspace(limit, footprint.total(LEAST))
    images = min(most.images_per_round, most.threads)
    candidates = (
        most,
        most._replace(images_per_round=images, image_sets=min(most.image_sets, images)),
        LEAST._replace(threads=most.threads),
        LEAST,
    )
    return next(one for one in candidates if fits(footprint, one, limit))


def images_per_round(batch: int, image_bytes: int, sets: int) -> int:
    """Return how many images to copy at a time, so that they stay in cache and every set has as many."""
    images = max(1, COPY_BYTES // image_bytes) if image_bytes else batch
    return min(batch, round_up(images, sets))
