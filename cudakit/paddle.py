"""Paddle: gradients through its autograd, made from the `Op` records. Operators reach it by this module alone."""

from typing import Any

import paddle
from paddle.autograd import PyLayer

from cudakit.errors import no_derivatives
from cudakit.frameworks import wrapping_framework
from cudakit.op import Op, compact, spread


def _wrap(buffer: Any, dtype: str) -> Any:
    tensor = paddle.utils.dlpack.from_dlpack(buffer.__dlpack__())
    return tensor.view("bfloat16") if dtype == "bfloat16" else tensor


def _stream(ordinal: int) -> int:
    handle: int = paddle.device.current_stream(paddle.CUDAPlace(ordinal)).stream_base.cuda_stream
    return handle


_TELLS = paddle.is_compiled_with_cuda() and hasattr(paddle.device, "current_stream")
FRAMEWORK = wrapping_framework(_wrap, _stream if _TELLS else None)


class _Differentiable(PyLayer):
    """Any operator; its gradients are computed only for the tensors that need one. One that has none refuses."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, results: list[Any], *tensors: Any) -> tuple[Any, ...]:
        """Run the operator and keep what its gradients are computed from.

        `results` get what it has, with None for what is not needed.
        """
        results[:] = _run(op, options, tensors)
        ctx.op, ctx.options = op, options
        ctx.asked = [x is not None and not x.stop_gradient for x in tensors]
        ctx.given = [x is not None for x in tensors]
        ctx.results = [x is not None for x in results]
        saved = [tensors[i] for i in op.saved]
        ctx.versions = [None if x is None else x.inplace_version for x in saved]
        ctx.save_for_backward(*saved)
        return tuple(compact(results))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        if op.backward is None:
            raise no_derivatives(op.name)
        saved = ctx.saved_tensor()
        for i, x, version in zip(op.saved, saved, ctx.versions, strict=True):
            if x is not None and x.inplace_version != version:
                raise RuntimeError(f"{op.name}: {op.arrays[i]} was changed in place before its gradients were computed")
        needs = tuple(name for name, asked in zip(op.arrays, ctx.asked, strict=True) if asked)
        along = spread(ctx.results, grads)
        found = _recorded(op.backward, ctx.options._replace(needs=needs), (*along, *saved))
        return tuple(x for x, given in zip(found, ctx.given, strict=True) if given)


def _recorded(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator, recording it where one of the tensors asks for a gradient."""
    if not (getattr(options, "needs", True) and _asks(tensors)):
        return _run(op, options, tensors)
    results: list[Any] = []
    found = _Differentiable.apply(op, options, results, *tensors)
    found = found if isinstance(found, (tuple, list)) else (found,)
    return spread([x is not None for x in results], found)


def _asks(tensors: tuple[Any, ...]) -> bool:
    """Whether one of them asks for a gradient that is to be recorded."""
    return paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)


def call(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on tensors, recording it where one of them asks for a gradient."""
    return _recorded(op, op.options(arguments), tensors)


def _run(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run on tensors, detached from the graph, where DLPack refuses to read them."""
    detached = tuple(x if x is None or x.stop_gradient else x.detach() for x in tensors)
    return op.run(FRAMEWORK, detached, options)
