"""The record of one operator, and the way of the data through it.

An `Op` says what an operator is called, which arrays it takes, and how to `prepare` a `Plan` from their specs. A plan
is made once for each combination of shapes, strides, dtypes, options and target; to run it is to pack pointers and to
launch. The adapters of frameworks read these records and know no family.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from operator import add, itemgetter
from typing import Any, NamedTuple, NoReturn

import numpy as np

from cudakit.array import CPU, Device, Framework, Spec, View, framework_of, numpy_pointer
from cudakit.errors import InvalidArgument
from cudakit.launch import Launch, get_num_threads

PLANS = 4096  # kept at a time
UNREADABLE = (AttributeError, BufferError, RuntimeError, ValueError)  # what DLPack producers raise when they refuse


class Target(NamedTuple):
    """What a plan is made for: a device and how many CPU threads may work."""

    device: Device
    threads: int


class Output(NamedTuple):
    """An array to allocate for a result; `zero`: it must come filled with zeros."""

    shape: tuple[int, ...]
    dtype: str
    zero: bool = False


class Slot(NamedTuple):
    """Something with an address: a place in (null, inputs..., outputs..., workspaces...), and bytes beyond it."""

    place: int
    offset: int = 0

    def at(self, offset: int) -> "Slot":
        """Return the same slot, `offset` bytes further on."""
        return self if self == NULL else Slot(self.place, self.offset + offset)


NULL = Slot(0)


class Step(NamedTuple):
    """A launch and where its leading pointers come from: places in the table of addresses, and bytes beyond them."""

    launch: Callable[[bytes, int], None]
    pack: Callable[..., bytes]
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    offsets: tuple[int, ...] | None  # None: all zero


@dataclass
class Plan:
    """What to allocate and launch.

    `results` holds an `Output` for each result of the operator, None for one that is not asked for. `copies` are the
    positions of inputs that must be made contiguous first; such a plan has nothing else and is made again after.
    """

    inputs: int
    results: tuple[Output | None, ...] = ()
    copies: tuple[int, ...] = ()
    workspaces: list[int] = field(default_factory=list)  # sizes in bytes
    steps: list[Step] = field(default_factory=list)

    def input(self, position: int) -> Slot:
        """Return the slot of an input."""
        return Slot(1 + position)

    def result(self, position: int) -> Slot:
        """Return the slot of a result, or the null slot of one that is not asked for."""
        return NULL if self.results[position] is None else Slot(1 + self.inputs + position)

    def workspace(self, size: int) -> Slot:
        """Reserve `size` bytes of temporary memory and return their slot."""
        self.workspaces.append(size)
        return Slot(self.inputs + len(self.results) + len(self.workspaces))

    def zero(self, slot: Slot, size: int, device: Device) -> None:
        """Append the filling of `size` bytes with zeros."""
        self._append(partial(_zero, size, device), (slot, slot))

    def launch(self, launch: Launch, *slots: Slot) -> None:
        """Append a launch whose leading pointers come from `slots`, unless it has nothing to do."""
        if launch.items > 0:
            self._append(launch, slots)

    def _append(self, launch: Callable[[bytes, int], None], slots: tuple[Slot, ...]) -> None:
        places, offsets = zip(*slots, strict=True)
        pack = struct.Struct(f"{len(slots)}Q").pack
        self.steps.append(Step(launch, pack, itemgetter(*places), offsets if any(offsets) else None))

    def run(self, pointers: Sequence[int], device: Device, stream: int) -> None:
        """Launch every step; `pointers` are those of the inputs and of the results (0 where there is none)."""
        table = (0, *pointers)
        if self.workspaces:
            temporary = [_allocate(size, device, stream) for size in self.workspaces]
            table += tuple(memory.pointer for memory in temporary)
        for launch, pack, pick, offsets in self.steps:
            addresses = pick(table)
            if offsets is not None:
                addresses = tuple(map(add, addresses, offsets))
            launch(pack(*addresses), stream)


class _HostWorkspace:
    """Temporary memory of the process."""

    def __init__(self, size: int) -> None:
        self._memory = np.empty(size, np.uint8)
        self.pointer = numpy_pointer(self._memory)


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


def _allocate(size: int, device: Device, stream: int) -> Any:
    if device == CPU:
        return _HostWorkspace(size)
    from cudakit.cuda import Workspace

    return Workspace(size, device, stream)


@dataclass(frozen=True, eq=False)
class Op:
    """One operator.

    Attributes
    ----------
    name : str
        Name of the public function; its messages begin with it.
    arrays : tuple of str
        Names of the array arguments, in order.
    check : callable
        Takes the other arguments, checks them, and returns them as options: a named tuple.
    prepare : callable
        (specs, options, target) -> `Plan`; it checks everything before anything is allocated.
    backward : Op, optional
        The operator of the gradients. Its arrays are the gradient of the result and the `saved` arrays, its options
        are those of this one with a field ``needs``, and its results are a gradient for each of this one's arrays.
    saved : tuple of int
        Positions of the arrays that the gradients are computed from.
    """

    name: str
    arrays: tuple[str, ...]
    check: Callable[..., Any]
    prepare: Callable[[tuple[Spec, ...], Any, Target], Plan]
    backward: "Op | None" = None
    saved: tuple[int, ...] = ()

    def __call__(self, arrays: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
        """Run on anybody's arrays and return theirs, one for each result."""
        framework = _agreed.get(tuple(map(type, arrays))) or self._agree(arrays)
        if isinstance(framework, Framework):
            return self.run(framework, arrays, self.options(arguments))
        return framework(self, arrays, arguments)

    def options(self, arguments: tuple[Any, ...]) -> Any:
        """Return the checked options."""
        try:
            return self.check(*arguments)
        except InvalidArgument as error:
            self.refuse(error)

    def _agree(self, arrays: tuple[Any, ...]) -> "Framework | Adapter":
        """Return what all the arrays have in common, or raise `TypeError`."""
        for name, array in zip(self.arrays, arrays, strict=True):
            try:
                framework = framework_of(array)
            except InvalidArgument as error:
                self.refuse(error, name)
            if framework is not framework_of(arrays[0]):
                rule = f"be an array of the same framework as {self.arrays[0]}, {_library(arrays[0])}"
                self.refuse(InvalidArgument(name, rule, _library(array), TypeError))
        common = import_module(f"cudakit.{framework}").call if isinstance(framework, str) else framework
        return _agreed.setdefault(tuple(map(type, arrays)), common)

    def run(self, framework: Framework, arrays: tuple[Any, ...], options: Any) -> tuple[Any, ...]:
        """Run on arrays of one framework, without regard to autograd."""
        try:
            key = (self, framework, options, get_num_threads(), *[framework.signature(array) for array in arrays])
        except (InvalidArgument, *UNREADABLE):
            self._recipe(framework, arrays, options)  # says which array cannot be read
            raise
        recipe = _recipes.get(key)
        if recipe is None:
            recipe = _remember(key, self._recipe(framework, arrays, options))
        plan, device, makers = recipe
        if plan.copies:
            return self.run(framework, _replace(arrays, plan.copies, framework.contiguous), options)
        results = tuple([None if make is None else make() for make in makers])
        pointer = framework.pointer
        pointers = [0 if array is None else pointer(array) for array in (*arrays, *results)]
        plan.run(pointers, device, 0 if device == CPU else framework.stream(device[1]))
        return results

    def _recipe(self, framework: Framework, arrays: tuple[Any, ...], options: Any) -> "Recipe":
        """Check the arrays and plan for them."""
        views = [self._view(framework, name, array) for name, array in zip(self.arrays, arrays, strict=True)]
        device = views[0].device
        for name, view in zip(self.arrays, views, strict=True):
            if view.device != device:
                rule = f"be on the device of {self.arrays[0]}, {device[0]}:{device[1]}"
                self.refuse(InvalidArgument(name, rule, f"{view.device[0]}:{view.device[1]}", TypeError))
        plan = self.plan(tuple(view.spec for view in views), options, device)
        return plan, device, tuple(result and _maker(framework, result, device) for result in plan.results)

    def plan(self, specs: tuple[Spec, ...], options: Any, device: Device) -> Plan:
        """Return the plan for arrays like these, checked."""
        try:
            return _plan(self, specs, options, Target(device, get_num_threads()))
        except InvalidArgument as error:
            self.refuse(error)

    def refuse(self, error: InvalidArgument, argument: str = "") -> NoReturn:
        """Raise a failed check in this operator's name."""
        if argument:
            error.argument = argument
        raise error.named(self.name) from None

    def _view(self, framework: Framework, name: str, array: Any) -> View:
        try:
            return framework.view(array)
        except InvalidArgument as error:
            self.refuse(error, name)
        except UNREADABLE as error:
            self.refuse(InvalidArgument(name, "be readable through DLPack", str(error), TypeError))


Adapter = Callable[[Op, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]
_agreed: dict[tuple[type, ...], Framework | Adapter] = {}  # what arrays of these types have in common
Maker = Callable[[], Any]
Recipe = tuple[Plan, Device, tuple[Maker | None, ...]]  # the last allocate the results
_recipes: dict[Any, Recipe] = {}  # what a call with arrays like these does, checks passed


def _maker(framework: Framework, result: Output, device: Device) -> Maker:
    return partial(framework.zeros if result.zero else framework.empty, result.shape, result.dtype, device)


def _remember(key: Any, recipe: Recipe) -> Recipe:
    if len(_recipes) >= PLANS:
        _recipes.clear()
    _recipes[key] = recipe
    return recipe


@lru_cache(PLANS)
def _plan(op: Op, specs: tuple[Spec, ...], options: Any, target: Target) -> Plan:
    return op.prepare(specs, options, target)


def _replace(arrays: tuple[Any, ...], positions: tuple[int, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(change(array) if i in positions else array for i, array in enumerate(arrays))


def _library(array: object) -> str:
    return f"{type(array).__module__.partition('.')[0]}.{type(array).__qualname__}"
