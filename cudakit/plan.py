"""What one call allocates and launches, whatever arrays it is called with: a `Plan` made of steps."""

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from operator import add, itemgetter
from typing import NamedTuple

from cudakit.array import CPU, Device, Temporary, itemsize
from cudakit.cpuinfo import largest_cache_bytes
from cudakit.launch import Launch, Multiply, lazy_kernel
from cudakit.product import Product
from cudakit.source import Kernel
from cudakit.structs import pack_scalars
from cudakit.workspace import aligned, borrow, give_back

# Of the largest cache, from which on an array is large. Temporary ones are read soon.
RESULT_SHARE, WORKSPACE_SHARE = 0.5, 0.75


class Target(NamedTuple):
    """What a plan is made for: a device and how many CPU threads may work.

    `reproducible`: a GPU is to give the same results in every run, as a CPU does anyway.
    """

    device: Device
    threads: int
    reproducible: bool = False

    @property
    def clears(self) -> bool:
        """Whether kernels that add to an array zero it themselves, each thread its own part (`CLEARS` in core.cuh)."""
        return self.device == CPU

    def bypasses_cache(self, slot: "Slot") -> bool:
        """Whether what is written there goes past a CPU's caches (`LARGE` in host_shim.h)."""
        return self.device == CPU and slot.large


class Output(NamedTuple):
    """An array to allocate for a result; `zero`: it must come filled with zeros."""

    shape: tuple[int, ...]
    dtype: str
    zero: bool = False


class Slot(NamedTuple):
    """Something with an address: a place in (null, inputs..., outputs..., workspaces...), and bytes beyond it.

    `large`: it is part of what would have left a CPU's caches before it is read.
    """

    place: int
    offset: int = 0
    large: bool = False

    def at(self, offset: int) -> "Slot":
        """Return the same slot, `offset` bytes further on."""
        return self if self == NULL else self._replace(offset=self.offset + offset)


NULL = Slot(0)


class Step(NamedTuple):
    """A launch and where its leading pointers come from: places in the table of addresses, and bytes beyond them."""

    launch: Callable[[bytes, int], None]
    pack: Callable[..., bytes]
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    offsets: tuple[int, ...] | None  # None: all zero


@dataclass
class Plan:
    """What to allocate and launch on a target.

    `results` holds an `Output` for each result of the operator, None for one that is not asked for. `copies` are the
    positions of inputs that must be made contiguous first; such a plan has nothing else and is made again after.
    `varies`: a GPU adds numbers up in any order, which shows.
    """

    target: Target
    inputs: int
    results: tuple[Output | None, ...] = ()
    copies: tuple[int, ...] = ()
    workspaces: list[int] = field(default_factory=list)  # where each begins in a block of temporary memory
    temporary: int = 0  # bytes of that block
    taken: int = 0  # of these, by workspaces whose memory is not free again
    steps: list[Step] = field(default_factory=list)
    varies: bool = False

    def input(self, position: int) -> Slot:
        """Return the slot of an input."""
        return Slot(1 + position)

    def result(self, position: int) -> Slot:
        """Return the slot of a result, or the null slot of one that is not asked for."""
        result = self.results[position]
        if result is None:
            return NULL
        size = prod(result.shape) * itemsize(result.dtype)
        return Slot(1 + self.inputs + position, large=size >= RESULT_SHARE * largest_cache_bytes())

    def workspace(self, size: int) -> Slot:
        """Reserve `size` bytes of temporary memory and return their slot."""
        self.workspaces.append(self.taken)
        self.taken += aligned(size)
        self.temporary = max(self.temporary, self.taken)
        place = self.inputs + len(self.results) + len(self.workspaces)
        return Slot(place, large=size >= WORKSPACE_SHARE * largest_cache_bytes())

    def free(self) -> None:
        """Let the workspaces to come have the memory of those so far, which no step to come uses."""
        self.taken = 0

    def zero(self, slot: Slot, size: int) -> None:
        """Append the filling of `size` bytes with zeros."""
        fill = partial(_zero, size, self.target.device)
        self._append(fill, (slot, NULL))  # two, for an `itemgetter` of one makes no tuple

    def launch(
        self,
        kernel: Kernel,
        constants: Mapping[str, str | int],
        slots: Sequence[Slot],
        items: int,
        values: Sequence[int | tuple[int, ...]],
        *,
        work: int,
        grain: int = 1,
        threads: int | None = None,
    ) -> None:
        """Append a launch, unless it has nothing to do.

        Parameters
        ----------
        kernel : Kernel
            What to launch.
        constants : mapping
            The prelude that it is compiled with.
        slots : sequence of Slot
            Where the pointers of its struct come from.
        items : int
            How many work items there are, which is the struct's next field.
        values : sequence of int or tuple of int
            The fields that follow.
        work : int
            Inner-loop steps of all items together, which decide how many CPU threads it is worth to wake.
        grain : int
            How many items must stay together on a CPU thread, because they add to the same elements.
        threads : int, optional
            At most so many CPU threads, by default the target's.
        """
        if items > 0:
            loaded = lazy_kernel(kernel, tuple(constants.items()), self.target.device)
            threads = threads or self.target.threads
            launch = Launch(loaded, pack_scalars(kernel, items, *values), items, grain, work, threads)
            self._append(launch, tuple(slots))
            self.varies = self.varies or launch.adds_in_any_order

    def multiply(self, product: Product, *slots: Slot) -> None:
        """Append a matrix product on a GPU; the slots are those of its operands a, b and c."""
        self._append(Multiply(product, self.target.device), slots)

    def _append(self, launch: Callable[[bytes, int], None], slots: tuple[Slot, ...]) -> None:
        places, offsets = zip(*((slot.place, slot.offset) for slot in slots), strict=True)
        pack = struct.Struct(f"{len(slots)}Q").pack
        self.steps.append(Step(launch, pack, itemgetter(*places), offsets if any(offsets) else None))

    def run(self, pointers: Sequence[int], stream: int, temporary: Temporary | None = None) -> None:
        """Launch every step.

        `pointers` are those of the inputs and of the results (0 where there is none); `temporary` allocates on a GPU.
        """
        table = (0, *pointers)
        if self.workspaces:
            memory = borrow(self.temporary, self.target.device, stream, temporary)
            table += tuple([memory.pointer + begin for begin in self.workspaces])
        for launch, pack, pick, offsets in self.steps:
            addresses = pick(table)
            if offsets is not None:
                addresses = tuple(map(add, addresses, offsets))
            launch(pack(*addresses), stream)
        if self.workspaces:
            give_back(memory, self.target.device)


def _zero(size: int, device: Device, pointers: bytes, stream: int) -> None:
    pointer, _ = struct.unpack("2Q", pointers)
    zero_memory(pointer, size, device, stream)


def zero_memory(pointer: int, size: int, device: Device, stream: int) -> None:
    """Fill memory with zeros, on `stream` where it is a GPU's."""
    if device == CPU:
        ctypes.memset(pointer, 0, size)
    else:
        from cudakit import cuda

        cuda.zero_memory(pointer, size, device, stream)
