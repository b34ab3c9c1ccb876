"""PyTorch: every operator takes part in autograd, made from its `Op` record. The only package that imports torch.

Called on plain tensors, an operator runs at once, under an `autograd.Function`. Where something wants to see the call
on its way (``torch.compile``, ``torch.export``, ``torch.func``, a kind of tensor of its own), it goes through PyTorch's
dispatcher, as one of the `operators`.

Under ``torch.autocast``, what says where to look (``theta``, ``grid``, ``offset``, ``mask``) is never below float32:
half precision has too few digits for a position in an image. The other arrays are promoted to the widest dtype among
them, as those of ``torch.nn.functional.grid_sample`` are; those of an operator with weights are lowered, as those of a
convolution are. Gradients come back in the dtypes of the arguments.
"""

from functools import cache, lru_cache, reduce
from typing import Any

import torch
from torch.autograd import forward_ad

from cudakit.array import CPU, Device, Framework, Memory, Spec, View
from cudakit.errors import InvalidArgument, no_second_derivatives
from cudakit.op import PLANS, Op

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Tensors = tuple[Any, ...]  # tensors, and None for an optional one
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def dtype_name(x: torch.Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return _NAMES.get(x.dtype) or str(x.dtype).removeprefix("torch.")


def _view(x: torch.Tensor) -> View:
    place = x.device
    if place.type not in ("cpu", "cuda") or x.layout is not torch.strided:
        raise InvalidArgument("{}", "be a dense tensor on a CPU or CUDA device", f"{x.layout} on {place}", TypeError)
    device = CPU if place.type == "cpu" else ("cuda", place.index)
    pointer = x.data_ptr()
    return View(pointer, Spec(tuple(x.shape), x.stride(), dtype_name(x), device == CPU or pointer % 16 == 0), device)


def _signature(x: torch.Tensor) -> Any:
    return x.shape, x.stride(), x.dtype, x.device, x.layout, x.data_ptr() % 16


@cache
def _on(device: Device) -> torch.device:
    return torch.device("cpu") if device == CPU else torch.device(*device)


def _empty(shape: tuple[int, ...], dtype: str, device: Device) -> torch.Tensor:
    return torch.empty(shape, dtype=DTYPES[dtype], device=_on(device))


def _zeros(shape: tuple[int, ...], dtype: str, device: Device) -> torch.Tensor:
    return torch.zeros(shape, dtype=DTYPES[dtype], device=_on(device))


def _temporary(size: int, device: Device, _stream: int) -> Memory:
    memory = torch.empty(size, dtype=torch.uint8, device=_on(device))
    return Memory(memory.data_ptr(), memory)


FRAMEWORK = Framework(
    view=_view,
    pointer=torch.Tensor.data_ptr,
    signature=_signature,
    empty=_empty,
    zeros=_zeros,
    contiguous=torch.Tensor.contiguous,
    stream=lambda ordinal: torch.cuda.current_stream(ordinal).cuda_stream,
    temporary=_temporary,
)


class _Differentiable(torch.autograd.Function):
    """Any operator with a `backward`; its gradients are computed only for the tensors that need one."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, *tensors: torch.Tensor | None) -> torch.Tensor:
        """Run the operator and keep what its gradients are computed from."""
        ctx.op, ctx.options = op, options
        ctx.save_for_backward(*(tensors[i] for i in op.saved))
        return op.run(FRAMEWORK, settled(tensors), options)[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tensors:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        needing = _needing.__wrapped__ if torch.compiler.is_compiling() else _needing  # compilers warn of caches
        options, tensors = needing(op, ctx.options, ctx.needs_input_grad[2:]), (grad, *ctx.saved_tensors)
        if not torch.is_grad_enabled():
            return (None, None, *_gradients(op, options, tensors))
        with torch.no_grad():
            found = _gradients(op, options, tensors)
        return (None, None, *_last(op.name, tensors, found))


@lru_cache(PLANS)
def _needing(op: Op, options: Any, needed: tuple[bool, ...]) -> Any:
    """Return the options with the gradients that are needed."""
    return options._replace(needs=tuple(name for name, need in zip(op.arrays, needed, strict=True) if need))


def _gradients(op: Op, options: Any, tensors: Tensors) -> Tensors:
    """Run the operator of an operator's gradients."""
    if torch.compiler.is_compiling() or _watched(tensors):
        from cudakit.torch.operators import gradients

        return gradients(op, options, tensors)
    if torch._C._functorch.is_legacy_batchedtensor(tensors[0]):
        from cudakit.torch.operators import batched_gradients

        return batched_gradients(op, options, tensors)
    assert op.backward is not None
    return op.backward.run(FRAMEWORK, settled(tensors), options)


def _last(name: str, tensors: Tensors, gradients: Tensors) -> Tensors:
    """Let gradients depend on all tensors that want gradients themselves, so that these are refused."""
    sources = [x for x in tensors if x is not None and x.requires_grad]
    if not sources:
        return gradients
    return tuple(x if x is None else _Last.apply(name, x, *sources) for x in gradients)


class _Last(torch.autograd.Function):
    """Something that depends on tensors which want gradients, but cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, x: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        """Return the same."""
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tensors:
        """Refuse."""
        raise RuntimeError(f"{no_second_derivatives(ctx.name)}; its gradients are once_differentiable")


def call(op: Op, tensors: Tensors, arguments: tuple[Any, ...]) -> Tensors:
    """Run an operator on tensors, recording it for autograd where one of them asks for a gradient."""
    if torch.compiler.is_compiling() or _watched(tensors):
        from cudakit.torch.operators import dispatch

        return dispatch(op, _autocast(op, tensors), arguments)
    if torch._C._is_any_autocast_enabled():
        tensors = _autocast(op, tensors)
    options = op.options(arguments)
    if forward_ad._current_level >= 0 and any(map(_is_dual, tensors)):
        raise NotImplementedError(f"{op.name}: there is no forward mode of differentiation")
    asks = torch.is_grad_enabled() and True in _asking(tensors)
    if asks and op.backward is not None:
        return (_Differentiable.apply(op, options, *tensors),)
    found = op.run(FRAMEWORK, settled(tensors), options)
    return _last(op.name, tensors, found) if asks else found


def _is_dual(x: torch.Tensor | None) -> bool:
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
    """Cast as the module's docstring says, under autocast; what is no floating tensor stays, to be refused."""
    device = tensors[0].device.type
    named = [(name, x) for name, x in zip(op.arrays, tensors, strict=True) if x is not None]
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not enabled or not all(x.is_floating_point() for _, x in named):
        return tensors
    data = [x.dtype for name, x in named if name not in op.coordinates] or [x.dtype for _, x in named]
    dtype = reduce(torch.promote_types, data)
    if op.weights and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    wide = torch.promote_types(dtype, torch.float32)
    casts = (wide if name in op.coordinates else dtype for name in op.arrays)
    return tuple(x if x is None else x.to(cast) for x, cast in zip(tensors, casts, strict=True))
