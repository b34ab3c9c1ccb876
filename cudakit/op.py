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
from operator import add, itemgetter
from typing import Any, NamedTuple, NoReturn

import numpy as np

from cudakit.adapters import adapter, is_traced
from cudakit.array import CPU, Device, Framework, Spec, View, framework_of
from cudakit.errors import InvalidArgument
from cudakit.launch import Launch, get_num_threads
from cudakit.product import Multiply

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

    def multiply(self, multiply: Multiply, *slots: Slot) -> None:
        """Append a matrix product; the slots are those of its operands a, b and c."""
        self._append(multiply, slots)

    def _append(self, launch: Callable[[bytes, int], None], slots: tuple[Slot, ...]) -> None:
        places, offsets = zip(*slots, strict=True)
        pack = struct.Struct(f"{len(slots)}Q").pack
        self.steps.append(Step(launch, pack, itemgetter(*places), offsets if any(offsets) else None))

    def run(self, pointers: Sequence[int], device: Device, stream: int) -> None:
        """Launch every step; `pointers` are those of the inputs and of the results (0 where there is none)."""
        temporary = [_allocate(size, device, stream) for size in self.workspaces]
        table = (0, *pointers, *[memory.pointer for memory in temporary])
        for launch, pack, pick, offsets in self.steps:
            addresses = pick(table)
            if offsets is not None:
                addresses = tuple(map(add, addresses, offsets))
            launch(pack(*addresses), stream)


class _HostWorkspace:
    """Temporary memory of the process."""

    def __init__(self, size: int) -> None:
        self._memory = np.empty(size, np.uint8)
        self.pointer: int = self._memory.ctypes.data


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


OPS: "dict[str, Op]" = {}  # every operator by its name


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
        Takes the other arguments, checks them, and returns them as options: a named tuple of numbers, strings, tuples
        of them, and such named tuples. A field ``batch`` is the size of the batch.
    prepare : callable
        (specs, options, target) -> `Plan`; it checks everything before anything is allocated. The spec of an array that
        is None is None.
    backward : Op, optional
        The operator of the gradients. Its arrays are the gradient of the result and the `saved` arrays, its options
        are those of this one with a field ``needs``, and its results are a gradient for each of this one's arrays.
    saved : tuple of int
        Positions of the arrays that the gradients are computed from.
    optional : tuple of str
        Names of the arrays that may be None; their gradient is None then.
    coordinates : tuple of str
        Names of the arrays that say where to look, which want the digits of float32 whatever the others are.
    weights : tuple of str
        Names of the arrays, or arrays whose gradients these are, that have no batch axis; the others have it first.
    infer : callable, optional
        (specs, options) -> the `Output` of each result, without checks and in plain arithmetic, because sizes may be
        symbols. An operator of gradients needs none where these are the gradients by all its arrays but the first.
    """

    name: str
    arrays: tuple[str, ...]
    check: Callable[..., Any]
    prepare: Callable[[tuple[Any, ...], Any, Target], Plan]
    backward: "Op | None" = None
    saved: tuple[int, ...] = ()
    optional: tuple[str, ...] = ()
    coordinates: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    infer: Callable[[tuple[Any, ...], Any], tuple[Output | None, ...]] | None = None

    def __post_init__(self) -> None:
        OPS[self.name] = self

    def __call__(self, arrays: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
        """Run on anybody's arrays and return theirs, one for each result."""
        if is_traced():  # nothing that is remembered between calls may become a condition of the trace
            return adapter("torch")(self, arrays, arguments)
        framework = self.common_framework(arrays)
        if isinstance(framework, str):
            return adapter(framework)(self, arrays, arguments)
        return self.run(framework, arrays, self.options(arguments))

    def options(self, arguments: tuple[Any, ...]) -> Any:
        """Return the checked options."""
        try:
            try:
                kinds = tuple([type(item) for value in arguments if type(value) is tuple for item in value])
                return _options(self.check, kinds, *arguments)
            except TypeError:  # something unhashable, such as a list
                return self.check(*arguments)
        except InvalidArgument as error:
            self.refuse(error)

    def common_framework(self, arrays: tuple[Any, ...]) -> Framework | str:
        """Return what all the arrays have in common, or raise `TypeError`."""
        for name, array in zip(self.arrays, arrays, strict=True):
            if array is None and name in self.optional:
                continue
            try:
                framework = framework_of(array)
            except InvalidArgument as error:
                self.refuse(error, name)
            if framework is not framework_of(arrays[0]):
                rule = f"be an array of the same framework as {self.arrays[0]}, {_library(arrays[0])}"
                self.refuse(InvalidArgument(name, rule, _library(array), TypeError))
        return framework

    def run(self, framework: Framework, arrays: tuple[Any, ...], options: Any) -> tuple[Any, ...]:
        """Run on arrays of one framework, without regard to autograd."""
        try:
            key = (
                self,
                framework,
                options,
                get_num_threads(),
                *[None if array is None else framework.signature(array) for array in arrays],
            )
        except (InvalidArgument, *UNREADABLE):
            self._recipe(framework, arrays, options)  # says which array cannot be read
            raise
        recipe = _recipes.get(key)
        if recipe is None:
            recipe = _remember(key, self._recipe(framework, arrays, options))
        plan, device = recipe
        if plan.copies:
            return self.run(framework, _replace(arrays, plan.copies, framework.contiguous), options)
        pointer = framework.pointer
        pointers = [0 if array is None else pointer(array) for array in arrays]
        results: list[Any] = []
        for wanted in plan.results:
            result = None
            if wanted is not None:
                shape, dtype, zero = wanted
                result = (framework.zeros if zero else framework.empty)(shape, dtype, device)
            results.append(result)
            pointers.append(0 if result is None else pointer(result))
        plan.run(pointers, device, 0 if device == CPU else framework.stream(device[1]))
        return tuple(results)

    def _recipe(self, framework: Framework, arrays: tuple[Any, ...], options: Any) -> "Recipe":
        """Check the arrays and plan for them."""
        views = [self._view(framework, name, array) for name, array in zip(self.arrays, arrays, strict=True)]
        device = views[0].device if views[0] else CPU
        for name, view in zip(self.arrays, views, strict=True):
            if view is not None and view.device != device:
                rule = f"be on the device of {self.arrays[0]}, {device[0]}:{device[1]}"
                self.refuse(InvalidArgument(name, rule, f"{view.device[0]}:{view.device[1]}", TypeError))
        return self.plan(tuple(view and view.spec for view in views), options, device), device

    def plan(self, specs: tuple[Spec | None, ...], options: Any, device: Device) -> Plan:
        """Return the plan for arrays like these, checked."""
        try:
            return _plan(self, specs, options, Target(device, get_num_threads()))
        except InvalidArgument as error:
            self.refuse(error)

    def outputs(self, specs: tuple[Any, ...], options: Any) -> tuple[Output | None, ...]:
        """Return what the results look like, without checks."""
        if self.infer is not None:
            return self.infer(specs, options)
        named = zip(self.arrays[1:], specs[1:], strict=True)
        return tuple(
            [Output(x.shape, x.dtype) if x is not None and name in options.needs else None for name, x in named]
        )

    def refuse(self, error: InvalidArgument, argument: str = "") -> NoReturn:
        """Raise a failed check in this operator's name."""
        if argument:
            error.argument = argument
        raise error.named(self.name) from None

    def _view(self, framework: Framework, name: str, array: Any) -> View | None:
        if array is None:
            return None
        try:
            return framework.view(array)
        except InvalidArgument as error:
            self.refuse(error, name)
        except UNREADABLE as error:
            self.refuse(InvalidArgument(name, "be readable through DLPack", str(error), TypeError))


Recipe = tuple[Plan, Device]
_recipes: dict[Any, Recipe] = {}  # what a call with arrays like these does, checks passed


def _remember(key: Any, recipe: Recipe) -> Recipe:
    if len(_recipes) >= PLANS:
        _recipes.clear()
    _recipes[key] = recipe
    return recipe


@lru_cache(PLANS, typed=True)  # typed, and with the types of what is in tuples: 1 is neither True nor 1.0
def _options(check: Callable[..., Any], kinds: tuple[type, ...], *arguments: Any) -> Any:
    return check(*arguments)


@lru_cache(PLANS)
def _plan(op: Op, specs: tuple[Spec | None, ...], options: Any, target: Target) -> Plan:
    return op.prepare(specs, options, target)


def _replace(arrays: tuple[Any, ...], positions: tuple[int, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(change(array) if i in positions else array for i, array in enumerate(arrays))


def _library(array: object) -> str:
    return f"{type(array).__module__.partition('.')[0]}.{type(array).__qualname__}"
