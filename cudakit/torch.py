"""PyTorch: every operator takes part in autograd, made from its `Op` record. The only module that imports torch."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from cudakit.array import CPU, Device, Framework, Spec, View
from cudakit.errors import InvalidArgument
from cudakit.op import Op

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _view(x: torch.Tensor) -> View:
    place = x.device
    if place.type not in ("cpu", "cuda") or x.layout is not torch.strided:
        raise InvalidArgument("{}", "be a dense tensor on a CPU or CUDA device", f"{x.layout} on {place}", TypeError)
    device = CPU if place.type == "cpu" else ("cuda", place.index)
    pointer = x.data_ptr()
    name = _NAMES.get(x.dtype) or str(x.dtype).removeprefix("torch.")
    return View(pointer, Spec(tuple(x.shape), x.stride(), name, device == CPU or pointer % 16 == 0), device)


def _signature(x: torch.Tensor) -> Any:
    return x.shape, x.stride(), x.dtype, x.device, x.layout, x.data_ptr() % 16


def _on(device: Device) -> str:
    return "cpu" if device == CPU else f"cuda:{device[1]}"


def _empty(shape: tuple[int, ...], dtype: str, device: Device) -> torch.Tensor:
    return torch.empty(shape, dtype=_DTYPES[dtype], device=_on(device))


def _zeros(shape: tuple[int, ...], dtype: str, device: Device) -> torch.Tensor:
    return torch.zeros(shape, dtype=_DTYPES[dtype], device=_on(device))


FRAMEWORK = Framework(
    view=_view,
    pointer=torch.Tensor.data_ptr,
    signature=_signature,
    empty=_empty,
    zeros=_zeros,
    contiguous=torch.Tensor.contiguous,
    stream=lambda ordinal: torch.cuda.current_stream(ordinal).cuda_stream,
)


class _Differentiable(torch.autograd.Function):
    """Any operator with a `backward`; its gradients are computed only for the tensors that need one."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the operator and keep what its gradients are computed from."""
        ctx.op, ctx.options = op, options
        ctx.save_for_backward(*(tensors[i] for i in op.saved))
        return op.run(FRAMEWORK, tensors, options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        assert op.backward is not None
        needs = tuple(name for name, needed in zip(op.arrays, ctx.needs_input_grad[2:], strict=True) if needed)
        options = ctx.options._replace(needs=needs)
        return (None, None, *op.backward.run(FRAMEWORK, (grad, *ctx.saved_tensors), options))


def call(op: Op, tensors: tuple[torch.Tensor, ...], arguments: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
    """Run an operator on tensors, recording it for autograd where one of them asks for a gradient."""
    if torch.compiler.is_compiling():
        return _uncompiled(op, tensors, arguments)
    return _call(op, tensors, arguments)


def _call(op: Op, tensors: tuple[torch.Tensor, ...], arguments: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
    options = op.options(arguments)
    if op.backward is not None and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return (_Differentiable.apply(op, options, *tensors),)
    return op.run(FRAMEWORK, tensors, options)


_uncompiled = torch.compiler.disable(_call)  # a graph break: nothing here is for Dynamo to trace
