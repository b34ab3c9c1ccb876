"""Paddle: gradients through its autograd, made from the `Op` records. The only module that imports paddle."""

from typing import Any

import paddle
from paddle.autograd import PyLayer

from cudakit.errors import no_second_derivatives
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
        saved = [tensors[i] for i in op.saved]
        ctx.versions = [None if x is None else x.inplace_version for x in saved]
        ctx.save_for_backward(*saved)
        return _run(op, options, tensors)[0]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        """Run the operator of the gradients."""
        op: Op = ctx.op
        assert op.backward is not None
        saved = ctx.saved_tensor()
        for i, x, version in zip(op.saved, saved, ctx.versions, strict=True):
            if x is not None and x.inplace_version != version:
                raise RuntimeError(f"{op.name}: {op.arrays[i]} was changed in place before its gradients were computed")
        needs = tuple(name for name, asked in zip(op.arrays, ctx.asked, strict=True) if asked)
        found = _last(op.backward, ctx.options._replace(needs=needs), (grad, *saved))
        return tuple(x for x, given in zip(found, ctx.given, strict=True) if given)


class _Last(PyLayer):
    """An operator that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, op: Op, options: Any, results: list[Any], *tensors: Any) -> tuple[Any, ...]:
        """Run the operator; `results` get what it has, with None for what is not needed."""
        ctx.name = op.name
        results[:] = _run(op, options, tensors)
        return tuple(x for x in results if x is not None)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        """Refuse."""
        raise no_second_derivatives(ctx.name)


def _last(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator that has no gradients, so that whoever asks for them is refused."""
    if not (getattr(options, "needs", True) and _asks(tensors)):
        return _run(op, options, tensors)
    results: list[Any] = []
    found = _Last.apply(op, options, results, *tensors)
    left = iter(found if isinstance(found, (tuple, list)) else (found,))
    return tuple(None if x is None else next(left) for x in results)


def _asks(tensors: tuple[Any, ...]) -> bool:
    """Whether one of them asks for a gradient that is to be recorded."""
    return paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)


def call(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on tensors, recording it where one of them asks for a gradient."""
    options = op.options(arguments)
    if op.backward is None:
        return _last(op, options, tensors)
    if _asks(tensors):
        return (_Differentiable.apply(op, options, *tensors),)
    return _run(op, options, tensors)


def _run(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run on tensors, detached from the graph, where DLPack refuses to read them."""
    detached = tuple(x if x is None or x.stop_gradient else x.detach() for x in tensors)
    return op.run(FRAMEWORK, detached, options)
