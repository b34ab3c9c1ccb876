"""The record of one operator, and the way of the data through it.

An `Op` says what an operator is called, which arrays it takes, and how to `prepare` a `Plan` from their specs. A plan
is made once for each combination of shapes, strides, dtypes, options and target; to run it is to pack pointers and to
launch. The adapters of frameworks read these records and know no family.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from cudakit.adapters import adapter, is_traced
from cudakit.array import CPU, Device, Framework, Maker, Spec, View, contiguous_strides
from cudakit.errors import UNREADABLE, InvalidArgument
from cudakit.frameworks import framework_of, kind_of
from cudakit.launch import compile_together
from cudakit.plan import Output, Plan, Target
from cudakit.settings import are_deterministic_algorithms_enabled, get_num_threads, num_threads_of

PLANS = 4096  # kept at a time
# Types of arguments that never change, so that the options made of them may be remembered.
CONSTANT = frozenset((int, float, bool, str, type(None), *(np.dtype(code).type for code in np.typecodes["AllInteger"])))

Arrays = tuple[Any, ...]
Specs = tuple[Spec | None, ...]
OPS: "dict[str, Op]" = {}  # every operator by its name


@dataclass(eq=False)  # not frozen: Paddle's tracer sets the attributes of what it meets
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
        The operator of the gradients. Its arrays are the gradients of the results and the `saved` arrays, its options
        are those of this one with other ``needs``, and its results are a gradient for each of this one's arrays. An
        operator of gradients may have one, too.
    saved : tuple of int
        Positions of the arrays that the gradients are computed from.
    optional : tuple of str
        Names of the arrays that may be None; their gradient is None then.
    coordinates : tuple of str
        Names of the arrays that say where to look, which want the digits of float32 whatever the others are.
    weights : tuple of str
        Names of the arrays, or arrays whose gradients these are, that have no batch axis; the others have it first.
    nonlinear, additive : tuple of str
        Names of the arrays in which results are not linear, and of those which are added, whatever the others are.
    infer : callable, optional
        (specs, options) -> the `Output` of each result, without checks and in plain arithmetic, because sizes may be
        symbols. An operator of gradients needs none where each looks like the array by which it is the gradient.
    primal_name : str
        Of an operator of gradients, the name of that whose they are, its `primal`; empty for others. No
        reference, because Paddle's tracer follows references in circles.
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
    nonlinear: tuple[str, ...] = ()
    additive: tuple[str, ...] = ()
    infer: Callable[[tuple[Any, ...], Any], tuple[Output | None, ...]] | None = None
    primal_name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        OPS[self.name] = self
        if self.backward is not None:
            self.backward.primal_name = self.name

    @property
    def primal(self) -> "Op | None":
        """The operator whose gradients the results are, if they are gradients."""
        return OPS[self.primal_name] if self.primal_name else None

    @property
    def gradients_by(self) -> tuple[str, ...]:
        """The arrays by which the results are gradients, empty where there is one result that is none.

        There is a gradient for each, or None if the field ``needs`` of the options does not name it.
        """
        return () if self.primal is None else self.primal.arrays

    def __call__(self, arrays: Arrays, *arguments: Any) -> tuple[Any, ...]:
        """Run on anybody's arrays and return theirs, one for each result."""
        if is_traced():  # nothing that is remembered between calls may become a condition of the trace
            return adapter("torch")(self, arrays, arguments)
        framework = _agreed.get((self, *map(type, arrays))) or self._agree(arrays)
        if isinstance(framework, Framework):
            return self.run(framework, arrays, self.options(arguments))
        return framework(self, arrays, arguments)

    def options(self, arguments: tuple[Any, ...]) -> Any:
        """Return the checked options."""
        try:
            if CONSTANT.issuperset(map(type, arguments)):
                return _options(self.check, (), *arguments)
            kinds = tuple([type(item) for value in arguments if isinstance(value, tuple) for item in value])
            if CONSTANT.issuperset((*kinds, *[type(value) for value in arguments if not isinstance(value, tuple)])):
                return _options(self.check, kinds, *arguments)
            return self.check(*arguments)  # what may change must not be remembered
        except InvalidArgument as error:
            self.refuse(error)

    def _agree(self, arrays: Arrays) -> "Framework | Adapter":
        """Return what all the arrays have in common, or raise `TypeError`."""
        named = zip(self.arrays, arrays, strict=True)
        given = [(name, array) for name, array in named if array is not None or name not in self.optional]
        leader, first = given[0]
        for name, array in given:
            try:
                framework = framework_of(array)
            except InvalidArgument as error:
                self.refuse(error, name)
            if framework is not framework_of(first):
                rule = f"be an array of the same framework as {leader}, {kind_of(first)}"
                self.refuse(InvalidArgument(name, rule, kind_of(array), TypeError))
        common = adapter(framework) if isinstance(framework, str) else framework
        return _agreed.setdefault((self, *map(type, arrays)), common)

    def run(self, framework: Framework, arrays: Arrays, options: Any) -> tuple[Any, ...]:
        """Run on arrays of one framework, without regard to autograd."""
        threads = num_threads_of(framework.threads)  # once: another thread may set it meanwhile
        try:
            key = (
                self,
                framework,
                options,
                threads,
                *[None if array is None else framework.signature(array) for array in arrays],
            )
        except (InvalidArgument, *UNREADABLE):
            self._recipe(framework, arrays, options, threads)  # says which array cannot be read
            raise
        recipe = _recipes.get(key)
        if recipe is None:
            recipe = _remember(key, self._recipe(framework, arrays, options, threads))
        plan, device, makers = recipe
        if plan.copies:
            return self.run(framework, _replace(arrays, plan.copies, framework.contiguous), options)
        if device != CPU and plan.varies and _wants_reproducible(framework):
            recipe = _recipes.get((key, True))
            if recipe is None:
                recipe = _remember((key, True), self._recipe(framework, arrays, options, threads, reproducible=True))
            plan, device, makers = recipe
        results = tuple([None if make is None else make() for make in makers])
        pointer = framework.pointer
        pointers = [0 if array is None else pointer(array) for array in (*arrays, *results)]
        stream = 0 if device == CPU else framework.stream(device[1])
        plan.run(pointers, stream, framework.temporary)
        if framework.finish is not None and device != CPU:
            framework.finish(device[1], stream)
        return results

    def _recipe(
        self, framework: Framework, arrays: Arrays, options: Any, threads: int, *, reproducible: bool = False
    ) -> "Recipe":
        """Check the arrays, plan for them, and compile what the plan launches."""
        views = [self._view(framework, name, array) for name, array in zip(self.arrays, arrays, strict=True)]
        leader, device = next(((name, view.device) for name, view in zip(self.arrays, views, strict=True) if view))
        for name, view in zip(self.arrays, views, strict=True):
            if view is not None and view.device != device:
                rule = f"be on the device of {leader}, {device[0]}:{device[1]}"
                self.refuse(InvalidArgument(name, rule, f"{view.device[0]}:{view.device[1]}", TypeError))
        lengths = [(0, 0) if view is None else (len(view.spec.shape), len(view.spec.strides)) for view in views]
        apart = tuple(i for i, (dimensions, strides) in enumerate(lengths) if dimensions != strides)
        if apart:
            return Plan(Target(device, threads), len(views), copies=apart), device, ()
        specs = tuple(view and view.spec for view in views)
        plan = self.plan(specs, options, device, threads, reproducible=reproducible)
        compile_together(step.launch for step in plan.steps)
        return plan, device, tuple(result and _maker(framework, result, device) for result in plan.results)

    def plan(
        self, specs: Specs, options: Any, device: Device, threads: int | None = None, *, reproducible: bool = False
    ) -> Plan:
        """Return the plan for arrays like these, checked; by default for the number of threads that is set."""
        target = Target(device, threads or get_num_threads(), reproducible and device != CPU)
        try:
            return _plan(self, specs, options, target)
        except InvalidArgument as error:
            self.refuse(error)

    def results(self, specs: Specs, options: Any, *, on_host: bool) -> tuple[Output | None, ...]:
        """Return what the results look like, checked; on devices other than the host without regard to `workspace`."""
        if not on_host and getattr(options, "workspace", None) is not None:
            options = options._replace(workspace=None)  # the least that is enough is the device's own
        return self.plan(specs, options, CPU).results

    def outputs(self, specs: tuple[Any, ...], options: Any) -> tuple[Output | None, ...]:
        """Return what the results look like, without checks."""
        if self.infer is not None:
            return self.infer(specs, options)
        named = dict(zip(self.arrays, specs, strict=True))
        wanted = [named[name] if name in options.needs else None for name in self.gradients_by]
        return tuple([None if x is None else Output(x.shape, x.dtype) for x in wanted])

    def present(self, options: Any, absent: Collection[str]) -> list[bool]:
        """Return of each result whether it is there: of gradients, those needed by arrays that are not None.

        `absent` names the arrays that are None.
        """
        if not self.gradients_by:
            return [True]
        without = set(absent).intersection(self.optional)
        return [name in options.needs and name not in without for name in self.gradients_by]

    def refuse(self, error: InvalidArgument, argument: str = "") -> NoReturn:
        """Raise a failed check in this operator's name."""
        if argument:
            error.argument = argument
        raise error.named(self.name) from None

    def _view(self, framework: Framework, name: str, array: Any) -> View | None:
        if array is None:
            return None
        try:
            view = framework.view(array)
            if 0 in view.spec.shape:  # no copy would give it other strides
                view = view._replace(spec=view.spec._replace(strides=contiguous_strides(view.spec.shape)))
            return view
        except InvalidArgument as error:
            self.refuse(error, name)
        except UNREADABLE as error:
            raise InvalidArgument(name, "be readable through DLPack", str(error), TypeError).named(self.name) from error


Adapter = Callable[[Op, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]
_agreed: dict[tuple[Any, ...], Framework | Adapter] = {}  # what arrays of these types have in common, by operator
Recipe = tuple[Plan, Device, tuple[Maker | None, ...]]  # the last allocate the results
_recipes: dict[Any, Recipe] = {}  # what a call with arrays like these does, checks passed


def _wants_reproducible(framework: Framework) -> bool:
    """Whether results must be the same in every run."""
    wanted = framework.deterministic
    return are_deterministic_algorithms_enabled() or (wanted is not None and wanted())


def _maker(framework: Framework, result: Output, device: Device) -> Maker:
    return framework.maker(result.shape, result.dtype, device, "zeros" if result.zero else "empty")


def _remember(key: Any, recipe: Recipe) -> Recipe:
    if len(_recipes) >= PLANS:
        _recipes.clear()
    _recipes[key] = recipe
    return recipe


def compact(values: Iterable[Any]) -> list[Any]:
    """Return those arrays or results that are there."""
    return [x for x in values if x is not None]


def spread(flags: Iterable[bool], values: Iterable[Any]) -> tuple[Any, ...]:
    """Return values in the places that are flagged, None in the others."""
    left = iter(values)
    return tuple([next(left) if there else None for there in flags])


@lru_cache(PLANS, typed=True)  # typed, and with the types of what is in tuples: 1 is neither True nor 1.0
def _options(check: Callable[..., Any], kinds: tuple[type, ...], *arguments: Any) -> Any:
    return check(*arguments)


@lru_cache(PLANS)
def _plan(op: Op, specs: Specs, options: Any, target: Target) -> Plan:
    return op.prepare(specs, options, target)


def _replace(arrays: Arrays, positions: tuple[int, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(change(array) if i in positions else array for i, array in enumerate(arrays))
