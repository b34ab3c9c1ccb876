"""Every operator as a PyTorch operator ``torch.ops.cudakit.NAME``: for compilers, exporters and transforms.

Its arguments are the arrays, then the fields of the options, those of records within them included. It returns one
tensor, or for gradients a list of those that are needed.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_type_hints
from warnings import warn

import torch
from torch.autograd import forward_ad
from torch.jit import TracerWarning

from cudakit.array import Spec, contiguous_strides
from cudakit.batching import enlarged, foldable, leader
from cudakit.derivatives import double_backward_vjp, jvp
from cudakit.errors import InvalidArgument, no_derivatives
from cudakit.op import OPS, Op, compact, spread
from cudakit.plan import Output
from cudakit.torch import (
    DTYPES,
    FRAMEWORK,
    Tensors,
    any_dual,
    dtype_name,
    is_batched,
    is_dense,
    not_dense,
    onnx,
    settled,
)
from cudakit.torch.records import Record, flattened


def dispatch(op: Op, tensors: Tensors, arguments: tuple[Any, ...]) -> Tensors:
    """Run an operator through PyTorch's dispatcher."""
    if torch._C._get_tracing_state() is not None and any(map(_is_traced, arguments)):
        warn(f"{op.name}: torch.jit.trace takes the sizes that it is given for constants", TracerWarning, stacklevel=5)
    try:
        options = op.check(*arguments)
    except InvalidArgument as error:
        op.refuse(error)
    # A compiler asks `fake`: in the `backward` of an `autograd.Function` it stops at layouts. Where gradients come as a
    # named tuple it shall, as PyTorch 2.14 would lose them.
    if op.gradients_by or not torch.compiler.is_compiling():
        refuse_others(op, tensors)
    return run(op, options, tensors)


def refuse_others(op: Op, tensors: Tensors) -> None:
    """Raise `TypeError` where a tensor is not dense."""
    for name, x in zip(op.arrays, tensors, strict=True):
        if x is not None and not is_dense(x):
            op.refuse(not_dense(name, x))


def _is_traced(argument: Any) -> bool:
    """Whether numbers are sizes of a tensor that ``torch.jit.trace`` follows."""
    return any(isinstance(x, torch.Tensor) for x in (argument if isinstance(argument, (tuple, list)) else (argument,)))


def run(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run an operator; return its results, None for one that is not needed."""
    found = _OPERATORS[op.name](*tensors, *flattened(options))
    return spread(_wanted(op, options, tensors), _listed(found))


def _wanted(op: Op, options: Any, tensors: Tensors) -> list[bool]:
    """Return of each result whether it is there."""
    return op.present(options, [name for name, x in zip(op.arrays, tensors, strict=True) if x is None])


class _Transformed(torch.autograd.Function):
    """An operator under ``torch.func``, which takes gradients from such a class only."""

    @staticmethod
    def forward(*values: Any) -> Any:
        """Run the last of the arguments on the others."""
        found = values[-1].function(*values[:-1])
        return tuple(found) if isinstance(found, list) else found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the derivatives are computed from."""
        ctx.operator = inputs[-1]
        ctx.operator.set_up(ctx, inputs[:-1], output)
        op = ctx.operator.op
        ctx.save_for_forward(*[inputs[i] for i in op.saved], *_listed(output))

    @staticmethod
    def vmap(info: Any, places: tuple[Any, ...], *values: Any) -> Any:
        """Run on tensors with one axis more."""
        results, axes = values[-1].vmap(values[-1], info, places, *values[:-1])
        return (tuple(results), tuple(axes)) if isinstance(results, list) else (results, axes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Tensors:
        """Run the operator of the gradients."""
        return (*ctx.operator.backward(ctx, grads), *ctx.blanks, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> Any:
        """Return the derivatives of the results in a direction."""
        op = ctx.operator.op
        found = jvp(run, op, ctx.options, ctx.saved_tensors, tangents[: len(op.arrays)])
        return tuple(compact(found)) if op.gradients_by else found[0]


class _Operator:
    """What PyTorch wants to know of an operator."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.function: Any
        self.record = Record.of(get_type_hints(op.check)["return"])
        arrays = [f"Tensor{'?' if name in op.optional else ''} {name}" for name in op.arrays]
        options = [f"{schema} {name}" for name, schema in self.record.schemas()]
        schema = f"({', '.join(arrays + options)}) -> {'Tensor[]' if op.gradients_by else 'Tensor'}"
        definition = torch.library.custom_op(f"cudakit::{op.name}", self.run, mutates_args=(), schema=schema)
        definition.register_fake(self.fake)
        definition.register_vmap(lambda *arguments: self.vmap(self.plain, *arguments))
        definition.register_autograd(self.backward_of_all, setup_context=self.set_up)
        _BATCHED.impl(op.name, self.batched, "Batched")
        self.function = getattr(torch.ops.cudakit, op.name).default

    def __call__(self, *values: Any) -> Any:
        """Call the operator on tensors and the fields of the options."""
        if torch.compiler.is_compiling():
            if forward_ad._current_level >= 0:
                raise NotImplementedError(f"{self.op.name}: torch.compile carries no derivatives forward")
            return self.plain(*values)
        if _differentiates() or any_dual(values[: len(self.op.arrays)]):
            return _Transformed.apply(*values, self)
        return self.function(*values)

    def plain(self, *values: Any) -> Any:
        """Call it, or an operator of ONNX where a model is exported there, once no transform wants its rules."""
        if onnx.is_exporting():
            tensors, options = self.split(values)
            if not any(x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors):
                self.outputs(tensors, options)  # checks
                converted = onnx.convert(self.op, options, tensors)
                if converted is not None:
                    return converted
        return self.function(*values)

    def split(self, values: tuple[Any, ...]) -> tuple[Tensors, Any]:
        """Return the tensors and the options among the arguments."""
        count = len(self.op.arrays)
        return values[:count], self.record.made(iter(values[count:]))

    def results(self, found: tuple[Any, ...]) -> Any:
        """Return results in the form of the schema."""
        return compact(found) if self.op.gradients_by else found[0]

    def run(self, *values: Any) -> Any:
        """Run on true tensors."""
        tensors, options = self.split(values)
        return self.results(self.op.run(FRAMEWORK, settled(tensors), options))

    def fake(self, *values: Any) -> Any:
        """Return empty results."""
        tensors, options = self.split(values)
        refuse_others(self.op, tensors)
        place = self.place(tensors)
        outputs = self.outputs(tensors, options)
        return self.results(
            tuple([x if x is None else torch.empty(x.shape, dtype=DTYPES[x.dtype], device=place) for x in outputs])
        )

    def place(self, tensors: Tensors) -> torch.device:
        """Return the device that all share: beside a meta tensor, PyTorch asks for empty results on any device."""
        placed = [(name, x.device) for name, x in zip(self.op.arrays, tensors, strict=True) if x is not None]
        leader, place = placed[0]
        for name, other in placed:
            if other != place:
                self.op.refuse(InvalidArgument(name, f"be on the device of {leader}, {place}", str(other), TypeError))
        return place

    def outputs(self, tensors: Tensors, options: Any) -> tuple[Output | None, ...]:
        """Return what the results look like; the arguments are checked as well where no size is a symbol."""
        specs = tuple(x if x is None else _spec(x) for x in tensors)
        if any(isinstance(size, torch.SymInt) for size in _numbers((specs, options))):
            return self.op.outputs(specs, options)
        return self.op.results(specs, options, on_host=all(x is None or not x.is_cuda for x in tensors))

    def set_up(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the gradients are computed from."""
        tensors, ctx.options = self.split(inputs)
        ctx.wanted = _wanted(self.op, ctx.options, tensors)
        # The gradients of options; where a result is a list, PyTorch takes an empty one for a list of tensors.
        lists = isinstance(output, list)
        ctx.blanks = [[] if lists and isinstance(x, list) and not x else None for x in inputs[len(tensors) :]]
        ctx.save_for_backward(*(tensors[i] for i in self.op.saved))

    def backward(self, context: Any, grads: Any) -> Tensors:
        """Run the operator of the gradients, on one of the result or several."""
        asked = zip(self.op.arrays, context.needs_input_grad, strict=False)
        options = context.options._replace(needs=tuple([name for name, needed in asked if needed]))
        given = spread(context.wanted, _listed(grads))
        if self.op.backward is not None:
            return run(self.op.backward, options, (*given, *context.saved_tensors))
        found, refused = double_backward_vjp(run, self.op, options, context.saved_tensors, given)
        if refused:
            raise no_derivatives(self.op.name)
        return found

    def backward_of_all(self, context: Any, grads: Any) -> tuple[Any, ...]:
        """Return a gradient for each argument, options included."""
        return (*self.backward(context, grads), *context.blanks)

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
            found = _listed(function(*larger, *flattened(enlarged(options, count))))
            first = leader(self.op, tensors)
            batch = moved[first].shape[int(self.op.arrays[first] in mapped)]
            results = [x.reshape(count, batch, *x.shape[1:]) for x in found]
        else:
            fields, rows = flattened(options), range(max(count, 1))  # of nothing, results have a shape, too
            if count == 0:
                named = zip(axes, moved, strict=True)
                moved = tuple([x.new_zeros(1, *x.shape[1:]) if name in mapped else x for name, x in named])
            parts = ([x[i] if name in mapped else x for name, x in zip(axes, moved, strict=True)] for i in rows)
            found = zip(*(_listed(function(*part, *fields)) for part in parts), strict=True)
            results = [torch.stack(same)[:count] for same in found]
        return (results, [0] * len(results)) if self.op.gradients_by else (results[0], 0)

    def batched(self, *values: Any) -> Any:
        """Run where autograd maps over some of the tensors (``is_grads_batched``)."""
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        places = tuple([0 if is_batched(x) else None for x in values])
        pairs = zip(values, places, strict=True)
        given = [x if place is None else torch._remove_batch_dim(x, level, 0, 0) for x, place in pairs]
        count = len(given[places.index(0)])
        found, _ = self.vmap(self.function, SimpleNamespace(batch_size=count), places, *given)
        results = [torch._add_batch_dim(x, 0, level) for x in _listed(found)]
        return results if isinstance(found, list) else results[0]

    def fold(self, name: str, x: torch.Tensor | None, count: int, mapped: bool) -> torch.Tensor | None:
        """Make a leading axis, or copies, part of the batch."""
        if x is None or name in self.op.weights:
            return x
        return (x if mapped else x.expand(count, *x.shape)).flatten(0, 1)


def _differentiates() -> bool:
    """Whether a transform of ``torch.func`` is at work; to ``functionalize`` an operator is like any other."""
    if not torch._C._are_functorch_transforms_active():
        return False
    return bool(torch._C._functorch.peek_interpreter_stack().key() != torch._C._functorch.TransformType.Functionalize)


def _listed(found: Any) -> Any:
    return [found] if isinstance(found, torch.Tensor) else found


def _spec(x: torch.Tensor) -> Spec:
    """Return what a tensor would be if it were contiguous: strides do not change the results' shapes.

    Symbols have none: of some, which depend on data, PyTorch cannot say whether they are 0.
    """
    shape = tuple(x.shape)
    known = not any(isinstance(size, torch.SymInt) for size in shape)
    return Spec(shape, contiguous_strides(shape) if known else (0,) * len(shape), dtype_name(x))


def _numbers(values: Any) -> Iterator[Any]:
    """Yield what is in nested tuples."""
    for value in values:
        if isinstance(value, tuple):
            yield from _numbers(value)
        else:
            yield value


_BATCHED = torch.library.Library("cudakit", "IMPL")
_OPERATORS = {name: _Operator(op) for name, op in OPS.items()}
