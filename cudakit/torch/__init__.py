"""PyTorch: every operator takes part in autograd, made from its `Op` record. Operators reach it by this package alone.

Called on plain tensors, an operator runs at once, under an `autograd.Function` where a derivative is asked for. Where
something wants to see the call on its way (``torch.compile``, ``torch.export``, ``torch.func``, a kind of tensor of its
own), it goes through PyTorch's dispatcher, as one of the `operators`.

Under ``torch.autocast``, what says where to look (``theta``, ``grid``, ``offset``, ``mask``) is never below float32:
half precision has too few digits for a position in an image. The other arrays are promoted to the widest dtype among
them, as those of ``torch.nn.functional.grid_sample`` are; those of an operator with weights are lowered, as those of a
convolution are. Gradients that autograd asks for come back in the dtypes of the arguments.
"""

import sys
from collections.abc import Callable
from functools import cache, lru_cache, partial, reduce
from typing import Any

import torch
from torch.autograd import forward_ad

from cudakit.array import CPU, Device, Framework, Maker, Memory, Spec, View
from cudakit.derivatives import direction_count, double_backward_vjp, jvp
from cudakit.errors import InvalidArgument, no_derivatives
from cudakit.frameworks import kind_of
from cudakit.op import OPS, PLANS, Op

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Tensors = tuple[Any, ...]  # tensors, and None for an optional one
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def dtype_name(x: torch.Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return _NAMES.get(x.dtype) or str(x.dtype).removeprefix("torch.")


def is_dense(x: torch.Tensor) -> bool:
    """Whether a tensor is neither nested nor sparse."""
    return not x.is_nested and x.layout is torch.strided


def not_dense(argument: str, x: torch.Tensor) -> InvalidArgument:
    """Return what to raise for a tensor that is not, or on a device that is none of ours."""
    if x.is_nested:
        return InvalidArgument(argument, "be a dense tensor", "a nested one", TypeError)
    got = f"{x.layout} on {x.device}"
    return InvalidArgument(argument, "be a dense tensor on a CPU or CUDA device", got, TypeError)


def _view(x: torch.Tensor) -> View:
    place = x.device
    if place.type not in ("cpu", "cuda") or not is_dense(x):
        raise not_dense("{}", x)
    device = CPU if place.type == "cpu" else ("cuda", place.index)
    pointer = x.data_ptr()
    return View(pointer, Spec(tuple(x.shape), x.stride(), dtype_name(x), device == CPU or pointer % 16 == 0), device)


def _signature(x: torch.Tensor) -> Any:
    return x.shape, x.stride(), x.dtype, x.device, x.layout, x.data_ptr() % 16


@cache
def _on(device: Device) -> torch.device:
    return torch.device("cpu") if device == CPU else torch.device(*device)


def _maker(shape: tuple[int, ...], dtype: str, device: Device, make: str) -> Maker:
    return partial(getattr(torch, make), shape, dtype=DTYPES[dtype], device=_on(device))


def _temporary(size: int, device: Device, _stream: int) -> Memory:
    memory = torch.empty(size, dtype=torch.uint8, device=_on(device))
    return Memory(memory.data_ptr(), memory)


FRAMEWORK = Framework(
    view=_view,
    pointer=torch.Tensor.data_ptr,
    signature=_signature,
    maker=_maker,
    contiguous=torch.Tensor.contiguous,
    stream=lambda ordinal: torch.cuda.current_stream(ordinal).cuda_stream,
    temporary=_temporary,
    deterministic=torch.are_deterministic_algorithms_enabled,
    threads=torch.get_num_threads,
)


class _Differentiable(torch.autograd.Function):
    """Any operator; its gradients are computed only for the tensors that need one."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, refused: list[str], *tensors: torch.Tensor | None) -> Tensors:
        """Run the operator and keep what its derivatives are computed from; see `_Gate` for what is refused."""
        ctx.op, ctx.options, ctx.refused = op, options, refused
        ctx.set_materialize_grads(False)
        saved, results = [tensors[i] for i in op.saved], _compute(op, options, tensors)
        ctx.save_for_backward(*saved)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*saved, *results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Tensors:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(op.arrays))
        needing = _needing.__wrapped__ if torch.compiler.is_compiling() else _needing  # compilers warn of caches
        options = needing(op, ctx.options, ctx.needs_input_grad[3:])
        if op.backward is None:
            found, ctx.refused[:] = double_backward_vjp(apply, op, options, ctx.saved_tensors, grads)
        else:
            found = apply(op.backward, options, (*grads, *ctx.saved_tensors))
        return (None, None, None, *found)

    @staticmethod
    def jvp(ctx: Any, _op: Op, _options: Any, _refused: Any, *tangents: torch.Tensor | None) -> Tensors:
        """Return the derivatives of the results in a direction."""
        # What is kept for gradients of these must have no tangents: nobody carries those forward once more.
        saved = tuple([x if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors])
        return jvp(apply, ctx.op, ctx.options, saved, tangents)


def _named(op: Op) -> type[_Differentiable]:
    """Return a class of the operator's own, whose name tensors and profilers show: a ``GridSampleBackward``."""
    return type("".join(word.capitalize() for word in op.name.split("_")), (_Differentiable,), {})


_DIFFERENTIABLE = {op: _named(op) for op in OPS.values()}


class _Gate(torch.autograd.Function):
    """What gradients pass on their way from an operator to a tensor, unless it refused this one.

    The operator does not know whether anybody wants it, which is known where this runs.
    """

    @staticmethod
    def forward(ctx: Any, op: Op, name: str, refused: list[str], x: torch.Tensor) -> torch.Tensor:
        """Return the same."""
        ctx.op, ctx.name, ctx.refused = op, name, refused
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tensors:
        """Return the gradient, or refuse."""
        if ctx.name in ctx.refused:
            raise no_derivatives(ctx.op.name)
        return None, None, None, grad

    @staticmethod
    def jvp(ctx: Any, _op: Op, _name: str, _refused: Any, tangent: torch.Tensor) -> torch.Tensor:
        """Return the same."""
        return tangent.view_as(tangent)


@lru_cache(PLANS)
def _needing(op: Op, options: Any, needed: tuple[bool, ...]) -> Any:
    """Return the options with the gradients that are needed."""
    return options._replace(needs=tuple(name for name, need in zip(op.arrays, needed, strict=True) if need))


def apply(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run an operator on tensors that autograd hands on."""
    if torch.compiler.is_compiling() or _watched(tensors) or any(map(is_batched, tensors)):
        from cudakit.torch.operators import run

        return run(op, options, tensors)
    return _run(op, options, tensors)


def _compute(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run an operator, by its name where somebody profiles."""
    if torch.autograd._profiler_enabled():
        with torch.autograd.profiler.record_function(f"cudakit::{op.name}"):
            return op.run(FRAMEWORK, settled(tensors), options)
    return op.run(FRAMEWORK, settled(tensors), options)


def _run(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run an operator at once, recording it for autograd where a tensor asks for a gradient or has a tangent."""
    asks, dual = torch.is_grad_enabled() and True in _asking(tensors), any_dual(tensors)
    if not asks and not dual:
        return _compute(op, options, tensors)
    refused: list[str] = []
    if asks and op.backward is None:
        count = direction_count(op)
        named = zip(op.arrays[count:], tensors[count:], strict=True)
        gated = [_Gate.apply(op, name, refused, x) if x is not None and x.requires_grad else x for name, x in named]
        tensors = (*tensors[:count], *gated)
    record = _DIFFERENTIABLE[op].apply
    if dual:
        record = _uncompiled(record)
    results: Tensors = record(op, options, refused, *tensors)
    return results


def call(op: Op, tensors: Tensors, arguments: tuple[Any, ...]) -> Tensors:
    """Run an operator on tensors, recording it for autograd where one of them asks for a gradient."""
    if torch.compiler.is_compiling() or _watched(tensors):
        from cudakit.torch.operators import dispatch
        from cudakit.torch.symbolic import is_symbolic, record

        if is_symbolic(tensors):
            return record(op, tensors, arguments)
        for name, x in zip(op.arrays, tensors, strict=True):
            if not isinstance(x, torch.Tensor) and (x is not None or name not in op.optional):
                op.refuse(InvalidArgument(name, "be a tensor", kind_of(x), TypeError))
        return dispatch(op, _autocast(op, tensors), arguments)
    if torch._C._is_any_autocast_enabled():
        tensors = _autocast(op, tensors)
    try:
        return _run(op, op.options(arguments), tensors)
    except TypeError:  # to look for them beforehand would take its time in every call
        if not all(x is None or x.is_meta for x in tensors) and not any(map(is_batched, tensors)):
            raise
    from cudakit.torch.operators import dispatch

    return dispatch(op, tensors, arguments)


def is_batched(x: object) -> bool:
    """Whether autograd maps over a tensor (``is_grads_batched``), by a map that is older than ``torch.func``."""
    return isinstance(x, torch.Tensor) and torch._C._functorch.is_legacy_batchedtensor(x)


def any_dual(tensors: Tensors) -> bool:
    """Whether one of them has a tangent, outside of ``torch.func``."""
    if forward_ad._current_level < 0:
        return False
    return any(map(_uncompiled(_has_tangent), tensors))


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as ``torch.compile``, which sees no tangents, leaves it alone where it broke its graph."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _has_tangent(x: torch.Tensor | None) -> bool:
    return x is not None and forward_ad.unpack_dual(x).tangent is not None


def settled(tensors: Tensors) -> Tensors:
    """Return tensors whose memory holds their values, without a sign that is put off, or zeros that are implied."""
    return tuple([x.clone() if x is not None and (x.is_neg() or x._is_zerotensor()) else x for x in tensors])


def _asking(tensors: Tensors) -> list[bool]:
    return [x.requires_grad for x in tensors if x is not None]


def _watched(tensors: Tensors) -> bool:
    """Whether a transform, a tracer or a kind of tensor of its own wants to see the call."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or not _PLAIN.issuperset(map(type, tensors))
    )


def _autocast(op: Op, tensors: Tensors) -> Tensors:
    """Cast as the module's docstring says, under autocast; what is of another dtype or layout stays, to be refused."""
    device = tensors[0].device.type
    named = [(name, x) for name, x in zip(op.arrays, tensors, strict=True) if x is not None]
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not enabled or not all(x.dtype in _NAMES and x.layout is torch.strided for _, x in named):
        return tensors
    data = [x.dtype for name, x in named if name not in op.coordinates] or [x.dtype for _, x in named]
    dtype = reduce(torch.promote_types, data)
    if op.weights and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    wide = torch.promote_types(dtype, torch.float32)
    casts = (wide if name in op.coordinates else dtype for name in op.arrays)
    return tuple(x if x is None else x.to(cast) for x, cast in zip(tensors, casts, strict=True))
