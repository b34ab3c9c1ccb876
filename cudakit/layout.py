"""Images in memory: their layouts, whatever the data format, and copies from one to another."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import gcd, prod
from typing import NamedTuple

from cudakit import checks
from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, Spec, contiguous_strides, is_contiguous, itemsize
from cudakit.errors import InvalidArgument
from cudakit.plan import NULL, Plan, Slot
from cudakit.source import Kernel, type_constants
from cudakit.workspace import ALIGNMENT

Extent = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides, in elements

DATA_FORMATS = ("channels_first", "channels_last")
COPY_FIELDS = (
    *((name, 1) for name in ("from", "to", "items")),
    *(("size", 3), ("from_stride", 3), ("to_stride", 3)),
)
COPY = Kernel("copy.cu", "copy", "CopyParams", COPY_FIELDS, pointers=2)
SUM_FIELDS = (
    *((name, 1) for name in ("from", "to", "partial", "items", "count", "chunks")),
    *(("size", 2), ("from_stride", 3)),
)
SUM, PARTIAL_SUMS, TOTAL_SUM = (
    Kernel("sum.cu", name, "SumParams", SUM_FIELDS, pointers=3) for name in ("sum", "sum_partial", "sum_total")
)
HOST_COPY_TILE = 32
HOST_SUM_TILE = 16
CUDA_SUM_LANES = 32
CUDA_SUM_TERMS = 64  # that a thread adds up at least, where there are so many
PARTIAL_SUM_BYTES = 8
HOST_VECTOR = 64  # channels in one pass on a CPU
CUDA_VECTOR_BYTES = 16  # that a thread loads at once
CUDA_LANES = 8  # each of which reads 16 bytes: a line of the cache
SECTOR_BYTES = 32  # of a GPU's memory, the least that is read or written
MOST_ELEMENTS = 2**56  # of a result, so that a few of each have 64-bit addresses
CUDA_THREADS = 1 << 18  # that a large GPU runs at the same time
MOST_SUMS_BYTES = 128 << 20  # that CPU threads may take for sums of their own


def host_vector(channels: int) -> int:
    """Return how many of so many neighbouring channels a CPU takes in one pass: a power of two."""
    vector = 4
    while vector < min(channels, HOST_VECTOR):
        vector *= 2
    return vector


def cuda_vector(channels: int, dtype: str) -> int:
    """Return how many of so many neighbouring channels a GPU's thread takes at a time: a power of two that fits."""
    return gcd(channels, CUDA_VECTOR_BYTES // itemsize(dtype))


def cuda_lanes(channels: int, vector: int, items: int) -> int:
    """Return how many lanes share an item with so many channels, of which each takes `vector` at a time.

    Few, because all of them work out coordinates, but more where there are not enough items for a large GPU.
    """
    lanes = 1
    while lanes < 32 and 2 * lanes * vector <= channels and (lanes < CUDA_LANES or items * lanes < CUDA_THREADS):
        lanes *= 2
    return lanes


def cuda_block(channels: int, group: int, items: int) -> int:
    """Return how many channels, in whole groups, one thread takes: few where a large GPU has few items for them."""
    groups = ceil_div(channels, group)
    return ceil_div(groups, min(max(groups, 1), ceil_div(CUDA_THREADS, max(items, 1)))) * group


class Image(NamedTuple):
    """An array of shape (N, C, S...) in memory; `strides` has N, C, S... in that order whatever the layout."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    aligned: bool = True

    @property
    def space(self) -> tuple[int, ...]:
        """The spatial sizes."""
        return self.shape[2:]

    @property
    def extent(self) -> Extent:
        """Shape and strides."""
        return self.shape, self.strides

    @property
    def pixel_strides(self) -> tuple[int, int, int]:
        """Strides (batch, channel, pixel), where one steps through all pixels."""
        return self.strides[0], self.strides[1], self.strides[-1]

    @property
    def flat(self) -> bool:
        """Whether one stride steps through all pixels of a channel."""
        step = self.strides[-1]
        expected = [stride * step for stride in contiguous_strides(self.space)]
        sizes = zip(self.strides[2:], expected, self.space, strict=True)
        return all(stride == wanted for stride, wanted, size in sizes if size != 1)

    def in_vectors(self, size: int) -> bool:
        """Whether a GPU may take the neighbouring channels of every pixel so many at a time."""
        pixel = [stride for stride, count in zip(self.strides[2:], self.space, strict=True) if count > 1]
        return self.aligned and not any(stride % size for stride in (self.strides[0], *pixel))

    def with_batch(self, count: int) -> "Image":
        """Return the layout of `count` of the batch's images."""
        return self._replace(shape=(count, *self.shape[1:]))

    def may_split_groups(self, groups: int) -> bool:
        """Whether one stride steps through the groups of channels of all images."""
        return groups == 1 or self.shape[0] <= 1 or self.strides[0] == self.shape[1] * self.strides[1]

    def split_groups(self, groups: int) -> "Image":
        """Return the same memory as a batch of groups of channels; see `may_split_groups`."""
        count, channels = self.shape[:2]
        step = channels // groups * self.strides[1] if groups > 1 else self.strides[0]
        return self._replace(shape=(count * groups, channels // groups, *self.space), strides=(step, *self.strides[1:]))


def image(spec: Spec, channels_last: bool) -> Image:
    """Read a spec in either data format."""
    order = (0, len(spec.shape) - 1, *range(1, len(spec.shape) - 1)) if channels_last else range(len(spec.shape))
    shape, strides = (tuple(values[i] for i in order) for values in (spec.shape, spec.strides))
    return Image(shape, (*strides[:2], *_settled(shape[2:], strides[2:])), spec.dtype, spec.aligned)


def ordered(batch: int, channels: int, space: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Return a shape in the order of the data format."""
    return (batch, *space, channels) if last else (batch, channels, *space)


def axes(n: int, last: bool) -> str:
    """Return the names of an image batch's axes."""
    space = ("D", "H", "W")[3 - n :]
    return f"({', '.join(('N', *space, 'C') if last else ('N', 'C', *space))})"


def checked_image(argument: str, spec: Spec, data_format: str, dimensions: Collection[int]) -> Image:
    """Check an image batch and return how it lies in memory."""
    last = data_format == "channels_last"
    checks.floating(argument, spec)
    checks.dimensions(argument, spec, [n + 2 for n in dimensions], " or ".join(axes(n, last) for n in dimensions))
    x = image(spec, last)
    if 0 in x.space:
        raise InvalidArgument(argument, "have no empty spatial dimension", f"shape {spec.shape}")
    return x


def unreadable(specs: Sequence[Spec | None], images: Mapping[int, Image | None]) -> tuple[int, ...]:
    """Return which of these arrays must be made contiguous; those that are read as images need only be `flat`."""
    given = ((i, spec, images.get(i)) for i, spec in enumerate(specs) if spec is not None)
    return tuple(i for i, spec, x in given if not (x.flat if x else is_contiguous(spec)))


def _settled(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Give dimensions of size 1, whose strides may be anything, such as keep an array `flat`."""
    step = next((stride for size, stride in zip(sizes[::-1], strides[::-1], strict=True) if size != 1), strides[-1])
    settled: list[int] = []
    for size, stride in zip(sizes[::-1], strides[::-1], strict=True):
        settled.append(step if size == 1 else stride)
        step = settled[-1] * size
    return tuple(settled[::-1])


def packed(shape: tuple[int, ...], dtype: str, *, channels_last: bool) -> Image:
    """Return an image without gaps; `shape` is (N, C, S...)."""
    count, channels, *space = shape
    if not channels_last:
        return Image(shape, contiguous_strides(shape), dtype)
    strides = contiguous_strides((count, *space, channels))
    return Image(shape, (strides[0], 1, *strides[1:-1]), dtype)


def accumulator(dtype: str) -> str:
    """Return the dtype that sums are kept in."""
    return {"float64": "float64"}.get(dtype, "float32")


def is_wide(extents: Iterable[Extent], *counts: int) -> bool:
    """Whether offsets into arrays of these extents, or numbers below these counts, need more than 32 bits."""
    spans = (
        sum((size - 1) * abs(stride) for size, stride in zip(shape, strides, strict=True) if size > 0)
        for shape, strides in extents
    )
    largest = max(*spans, *(count - 1 for count in counts), 0)
    return largest >= 2**31 - 2**22  # a GPU's loop goes one stride of the whole grid beyond the end


def add_copy(plan: Plan, source: tuple[Slot, Image], goal: tuple[Slot, Image], by_pixel: bool = False) -> None:
    """Append a copy from one layout and dtype to another; both images must be `flat`.

    CPU threads divide an image by channels or `by_pixel`: best as those that read the copy do.
    """
    target = plan.target
    (source_slot, old), (goal_slot, new) = source, goal
    if target.device == CPU:
        order, tile, run = (0, -1, 1) if by_pixel else (0, 1, -1), HOST_COPY_TILE, 1
    else:
        (order, run), tile = _cuda_order(old, new), 1
    size = tuple((*old.shape[:2], prod(old.space))[i] for i in order)
    items = size[0] * ceil_div(size[1], run * tile) * run * ceil_div(size[2], tile)
    wide = is_wide((old.extent, new.extent), items)
    constants = type_constants(old.dtype, new.dtype, wide, target.bypasses_cache(goal_slot))
    constants |= {"TILE": tile, "LANES": 1, "VEC": run}
    strides = (tuple(x.strides[i] for i in order) for x in (old, new))
    plan.launch(COPY, constants, (source_slot, goal_slot), items, (size, *strides), work=prod(size))


def _cuda_order(old: Image, new: Image) -> tuple[tuple[int, int, int], int]:
    """Return the order of (batch, channel, pixel) in which a GPU copies, and the run that it writes of the second."""
    near = 1 if abs(new.strides[1]) < abs(new.strides[-1]) else -1  # the neighbours in what is written
    turned = 0 < abs(old.strides[-near]) < abs(old.strides[near])
    return ((0, near, -near), SECTOR_BYTES // itemsize(new.dtype)) if turned else ((0, -near, near), 1)


def add_sum(
    plan: Plan,
    source: tuple[Slot, str],
    goal: tuple[Slot, str],
    sizes: tuple[int, int, int],
    strides: tuple[int, int, int],
    room: int | None = None,
) -> None:
    """Append ``goal[i] = sum over a, b of source[i, a, b]``; slots come with their dtypes.

    `room` are the bytes of temporary memory that a GPU may take at most.
    """
    target = plan.target
    count, terms = sizes[0], sizes[1] * sizes[2]
    tile, lanes, chunks, partial = 1, 1, 1, NULL
    if target.device == CPU:
        tile = HOST_SUM_TILE if strides[0] == 1 else 1
    else:  # threads are neighbours as what they read is
        lanes = 1 if strides[0] == 1 and count * itemsize(source[1]) >= SECTOR_BYTES else CUDA_SUM_LANES
        chunks = _sum_chunks(count, terms, lanes, room)
    stages = [(SUM, ceil_div(count, tile), lanes)]
    if chunks > 1:
        partial = plan.workspace(count * chunks * PARTIAL_SUM_BYTES)
        stages = [(PARTIAL_SUMS, count * chunks, lanes), (TOTAL_SUM, count, CUDA_SUM_LANES)]
    for kernel, items, lanes in stages:
        wide = is_wide([(sizes, strides)], items * lanes, terms)
        constants = type_constants(source[1], goal[1], wide) | {"TILE": tile, "LANES": lanes, "VEC": 1}
        values = (count, chunks, sizes[1:], strides)
        plan.launch(kernel, constants, (source[0], goal[0], partial), items, values, work=prod(sizes))


def add_sums(plan: Plan, parts: int, sums: tuple[Slot, Image], result: tuple[Slot, Image]) -> None:
    """Append what makes an image of so many sums for each element, which lie one image behind the other."""
    source, image = sums
    turned = parts == 1 or image != result[1]
    if parts > 1:
        size, goal = prod(image.shape), source if turned else result[0]
        add_sum(plan, (source, image.dtype), (goal, image.dtype), (size, 1, parts), (1, 0, size))
    if turned:
        add_copy(plan, sums, result)


def _sum_chunks(count: int, terms: int, lanes: int, room: int | None) -> int:
    """Return into how many chunks to cut so many terms of each of so many sums, to keep a large GPU busy."""
    chunks = min(ceil_div(terms, CUDA_SUM_TERMS * lanes), ceil_div(CUDA_THREADS, count * lanes))
    return chunks if room is None else min(chunks, room // ALIGNMENT * ALIGNMENT // (count * PARTIAL_SUM_BYTES))
