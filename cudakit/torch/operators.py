"""Every operator as a PyTorch operator ``torch.ops.cudakit.NAME``: for compilers, exporters and transforms.

Its arguments are the arrays, then the fields of the options, those of records within them included. It returns one
tensor, or for gradients a list of those that are needed.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch

from cudakit.array import CPU, Spec, contiguous_strides
from cudakit.batching import enlarged, foldable
from cudakit.errors import InvalidArgument, no_second_derivatives
from cudakit.op import OPS, Op
from cudakit.torch import DTYPES, FRAMEWORK, Tensors, dtype_name, settled

_SCHEMAS: dict[Any, str] = {
    bool: "bool",
    float: "float",
    int: "SymInt",
    int | None: "SymInt?",
    str: "str",
    tuple[int, ...]: "SymInt[]",
    tuple[str, ...]: "str",  # `needs`, with commas between: ``torch.jit.trace`` knows no lists of strings
}
_GRADIENTS = {op.backward.name: op.arrays for op in OPS.values() if op.backward is not None}


def dispatch(op: Op, tensors: Tensors, arguments: tuple[Any, ...]) -> Tensors:
    """Run an operator through PyTorch's dispatcher."""
    try:
        options = op.check(*arguments)
    except InvalidArgument as error:
        op.refuse(error)
    for name, x in zip(op.arrays, tensors, strict=True):
        if x is not None and x.is_nested:
            op.refuse(InvalidArgument(name, "be a dense tensor", "a nested one", TypeError))
    found = _OPERATORS[op.name](*tensors, *_flat(options))
    return _spread(op, options, tensors, found) if op.name in _GRADIENTS else (found,)


def _spread(op: Op, options: Any, tensors: Tensors, found: list[torch.Tensor]) -> Tensors:
    """Return a gradient for each array, None for one that was not asked for or whose array was not given."""
    absent = [name for name, x in zip(op.arrays, tensors, strict=True) if x is None]
    gradients = iter(found)
    wanted = [name in options.needs and name not in absent for name in _GRADIENTS[op.name]]
    return tuple([next(gradients) if want else None for want in wanted])


def gradients(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run the operator of an operator's gradients; return one for each array, None where it is not needed."""
    assert op.backward is not None
    return _each(op, options, _OPERATORS[op.backward.name](*tensors, *_flat(options)))


def batched_gradients(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run it where autograd maps over gradients (``is_grads_batched``), by a map that is older than ``torch.func``."""
    assert op.backward is not None
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    grads, operator = torch._remove_batch_dim(tensors[0], level, 0, 0), _OPERATORS[op.backward.name]
    values = (grads, *tensors[1:], *_flat(options))
    places = (0, *[None] * (len(values) - 1))
    found, _ = operator.vmap(operator.function, SimpleNamespace(batch_size=len(grads)), places, *values)
    return _each(op, options, [torch._add_batch_dim(x, 0, level) for x in found])


def _each(op: Op, options: Any, found: list[torch.Tensor]) -> Tensors:
    """Return a gradient for each array."""
    needed = iter(found)
    return tuple([next(needed) if name in options.needs else None for name in op.arrays])


def _flat(options: Any) -> list[Any]:
    """Return the fields of a record, those of records within it included."""
    values: list[Any] = []
    for name, value in zip(options._fields, options, strict=True):
        if name == "needs":
            values.append(",".join(value))
        elif not isinstance(value, tuple):
            values.append(value)
        elif hasattr(value, "_fields"):
            values.extend(_flat(value))
        else:
            values.append(list(value))
    return values


def _fields(record: type) -> Iterator[tuple[str, str]]:
    """Yield the names and schemas of what `_flat` returns."""
    for name, kind in get_type_hints(record).items():
        if hasattr(kind, "_fields"):
            yield from ((f"{name}_{inner}", schema) for inner, schema in _fields(kind))
        else:
            yield name, _SCHEMAS[kind]


def _record(record: type, values: Iterator[Any]) -> Any:
    """Return the record that `_flat` took apart."""
    fields = []
    for kind in get_type_hints(record).values():
        if hasattr(kind, "_fields"):
            fields.append(_record(kind, values))
            continue
        value = next(values)
        if kind == tuple[str, ...]:
            value = value.split(",") if value else []
        fields.append(tuple(value) if isinstance(value, (list, tuple)) else value)
    return record(*fields)


class _Transformed(torch.autograd.Function):
    """An operator under ``torch.func``, which takes gradients from such a class only."""

    @staticmethod
    def forward(*values: Any) -> Any:
        """Run the last of the arguments on the others."""
        found = values[-1].function(*values[:-1])
        return tuple(found) if isinstance(found, list) else found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the gradients are computed from."""
        ctx.operator = inputs[-1]
        ctx.operator.set_up(ctx, inputs[:-1], output)

    @staticmethod
    def vmap(info: Any, places: tuple[Any, ...], *values: Any) -> Any:
        """Run on tensors with one axis more."""
        results, axes = values[-1].vmap(values[-1], info, places, *values[:-1])
        return (tuple(results), tuple(axes)) if isinstance(results, list) else (results, axes)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tensors:
        """Run the operator of the gradients."""
        return (*ctx.operator.backward(ctx, grad), None)


class _Operator:
    """What PyTorch wants to know of an operator."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.function: Any
        self.record: type = get_type_hints(op.check)["return"]
        self.is_gradient = op.name in _GRADIENTS
        arrays = [f"Tensor{'?' if name in op.optional else ''} {name}" for name in op.arrays]
        options = [f"{schema} {name}" for name, schema in _fields(self.record)]
        self.blanks = (None,) * len(options)  # the gradients of options
        schema = f"({', '.join(arrays + options)}) -> {'Tensor[]' if self.is_gradient else 'Tensor'}"
        definition = torch.library.custom_op(f"cudakit::{op.name}", self.run, mutates_args=(), schema=schema)
        definition.register_fake(self.fake)
        definition.register_vmap(lambda *arguments: self.vmap(self.function, *arguments))
        if op.backward is not None:
            definition.register_autograd(self.backward, setup_context=self.set_up)
        self.function = getattr(torch.ops.cudakit, op.name).default

    def __call__(self, *values: Any) -> Any:
        """Call the operator on tensors and the fields of the options."""
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return _Transformed.apply(*values, self)
        return self.function(*values)

    def split(self, values: tuple[Any, ...]) -> tuple[Tensors, Any]:
        """Return the tensors and the options among the arguments."""
        count = len(self.op.arrays)
        return values[:count], _record(self.record, iter(values[count:]))

    def results(self, found: tuple[Any, ...]) -> Any:
        """Return results in the form of the schema."""
        return [x for x in found if x is not None] if self.is_gradient else found[0]

    def run(self, *values: Any) -> Any:
        """Run on true tensors."""
        tensors, options = self.split(values)
        return self.results(self.op.run(FRAMEWORK, settled(tensors), options))

    def fake(self, *values: Any) -> Any:
        """Return empty results; the arguments are checked as well where no size is a symbol."""
        tensors, options = self.split(values)
        specs = tuple(x if x is None else _spec(x) for x in tensors)
        place = next(x.device for x in tensors if x is not None)
        if any(isinstance(size, torch.SymInt) for size in _numbers((specs, options))):
            outputs = self.op.outputs(specs, options)
        else:
            outputs = self.op.plan(specs, options, CPU).results  # the same on every device
        return self.results(
            tuple([x if x is None else torch.empty(x.shape, dtype=DTYPES[x.dtype], device=place) for x in outputs])
        )

    def set_up(self, ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep what the gradients are computed from."""
        tensors, ctx.options = self.split(inputs)
        ctx.save_for_backward(*(tensors[i] for i in self.op.saved))

    def backward(self, context: Any, grad: torch.Tensor) -> Tensors:
        """Run the operator of the gradients."""
        if self.op.backward is None:
            raise no_second_derivatives(self.op.name)
        asked = zip(self.op.arrays, context.needs_input_grad, strict=False)
        options = context.options._replace(needs=tuple([name for name, needed in asked if needed]))
        return (*gradients(self.op, options, (grad, *context.saved_tensors)), *self.blanks)

    def vmap(self, function: Any, info: Any, places: tuple[Any, ...], *values: Any) -> Any:
        """Call `function` on tensors with one axis more: at once with a larger batch, or one after the other."""
        tensors, options = self.split(values)
        count = info.batch_size
        axes = dict(zip(self.op.arrays, places, strict=False))
        mapped = [name for name, axis in axes.items() if axis is not None]
        moved = tuple(
            [x if axes[name] is None else x.movedim(axes[name], 0) for name, x in zip(axes, tensors, strict=True)]
        )
        if foldable(self.op, options, mapped):
            larger = [self.fold(name, x, count, name in mapped) for name, x in zip(axes, moved, strict=True)]
            found = _listed(function(*larger, *_flat(enlarged(options, count))))
            batch = moved[0].shape[int(self.op.arrays[0] in mapped)]
            results = [x.reshape(count, batch, *x.shape[1:]) for x in found]
        else:
            fields, rows = _flat(options), range(max(count, 1))  # of nothing, results have a shape, too
            if count == 0:
                named = zip(axes, moved, strict=True)
                moved = tuple([x.new_zeros(1, *x.shape[1:]) if name in mapped else x for name, x in named])
            parts = ([x[i] if name in mapped else x for name, x in zip(axes, moved, strict=True)] for i in rows)
            found = zip(*(_listed(function(*part, *fields)) for part in parts), strict=True)
            results = [torch.stack(same)[:count] for same in found]
        return (results, [0] * len(results)) if self.is_gradient else (results[0], 0)

    def fold(self, name: str, x: torch.Tensor | None, count: int, mapped: bool) -> torch.Tensor | None:
        """Make a leading axis, or copies, part of the batch."""
        if x is None or name in self.op.weights:
            return x
        return (x if mapped else x.expand(count, *x.shape)).flatten(0, 1)


def _listed(found: Any) -> Any:
    return [found] if isinstance(found, torch.Tensor) else found


def _spec(x: torch.Tensor) -> Spec:
    """Return what a tensor would be if it were contiguous: strides do not change the results' shapes."""
    shape = tuple(x.shape)
    return Spec(shape, contiguous_strides(shape), dtype_name(x))


def _numbers(values: Any) -> Iterator[Any]:
    """Yield what is in nested tuples."""
    for value in values:
        if isinstance(value, tuple):
            yield from _numbers(value)
        else:
            yield value


_OPERATORS = {name: _Operator(op) for name, op in OPS.items()}
