"""Paddle: gradients through its autograd, made from the `Op` records. The only module that imports paddle."""

from typing import Any

import paddle
from paddle.autograd import PyLayer

from cudakit.frameworks import wrapping_framework
from cudakit.op import Op


def _wrap(buffer: Any, dtype: str) -> Any:
    tensor = paddle.utils.dlpack.from_dlpack(buffer.__dlpack__())
    return tensor.view("bfloat16") if dtype == "bfloat16" else tensor


def _stream(ordinal: int) -> int:
    handle: int = paddle.device.current_stream(paddle.CUDAPlace(ordinal)).stream_base.cuda_stream
    return handle


_TELLS = paddle.is_compiled_with_cuda() and hasattr(paddle.device, "current_stream")
FRAMEWORK = wrapping_framework(_wrap, _stream if _TELLS else None)


class _Differentiable(PyLayer):
    """Any operator with a `backward`; its gradients are computed only for the tensors that need one."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, *tensors: Any) -> Any:
        """Run the operator and keep what its gradients are computed from."""
        ctx.op, ctx.options = op, options
        ctx.asked = [x is not None and not x.stop_gradient for x in tensors]
        ctx.given = [x is not None for x in tensors]
        ctx.save_for_backward(*(tensors[i] for i in op.saved))
        return _run(op, options, tensors)[0]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        assert op.backward is not None
        needs = tuple(name for name, asked in zip(op.arrays, ctx.asked, strict=True) if asked)
        found = _run(op.backward, ctx.options._replace(needs=needs), (grad, *ctx.saved_tensor()))
        return tuple(x for x, given in zip(found, ctx.given, strict=True) if given)


def call(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on tensors, recording it where one of them asks for a gradient."""
    options = op.options(arguments)
    if op.backward is not None and paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors):
        return (_Differentiable.apply(op, options, *tensors),)
    return _run(op, options, tensors)


def _run(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run on tensors, detached from the graph, where DLPack refuses to read them."""
    detached = tuple(x if x is None or x.stop_gradient else x.detach() for x in tensors)
    return op.run(FRAMEWORK, detached, options)
