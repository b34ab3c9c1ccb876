"""JAX: every operator under `jit`, `grad` and `vmap`, made from its `Op` record. The only module that imports jax.

XLA allocates the results and a buffer callback fills them in place, on XLA's stream: nothing is copied.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import jax
from jax.experimental.buffer_callback import buffer_callback

from cudakit.array import CPU, Spec, contiguous_strides, dlpack_view
from cudakit.op import Op, zero_memory


def _specs(arrays: tuple[Any, ...]) -> tuple[Spec, ...]:
    """Return the specs of arrays or tracers; XLA's buffers are dense."""
    return tuple(Spec(tuple(x.shape), contiguous_strides(tuple(x.shape)), str(x.dtype)) for x in arrays)


def _execute(op: Op, options: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator inside XLA."""
    wanted = [result for result in op.plan(_specs(arrays), options, CPU).results if result is not None]

    def fill(context: Any, results: Any, *buffers: Any) -> None:
        views = [dlpack_view(buffer) for buffer in buffers]
        device = views[0].device
        stream = 0 if device == CPU else context.stream
        plan = op.plan(tuple(view.spec for view in views), options, device)
        outputs = iter(results)
        pointers = [view.pointer for view in views]
        for result in plan.results:
            view = None if result is None else dlpack_view(next(outputs))
            pointers.append(0 if view is None else view.pointer)
            if view is not None and result is not None and result.zero:
                size = prod(view.spec.shape) * int(jax.numpy.dtype(view.spec.dtype).itemsize)
                zero_memory(view.pointer, size, device, stream)
        plan.run(pointers, device, stream)

    shapes = [jax.ShapeDtypeStruct(result.shape, jax.numpy.dtype(result.dtype)) for result in wanted]
    return tuple(buffer_callback(fill, shapes, vmap_method="sequential")(*arrays))


@cache
def _function(op: Op, options: Any) -> Callable[..., Any]:
    """Return the operator as a jitted function of its arrays, differentiable where it has gradients."""
    if op.backward is None:
        return jax.jit(lambda *arrays: _execute(op, options, arrays))
    gradients = op.backward

    @jax.custom_vjp
    def function(*arrays: Any) -> Any:
        return _execute(op, options, arrays)[0]

    def forward(*primals: Any) -> tuple[Any, Any]:
        arrays = tuple(primal.value for primal in primals)
        # The names travel in the structure of the residuals, where they are static.
        needs = {name: None for name, primal in zip(op.arrays, primals, strict=True) if primal.perturbed}
        return function(*arrays), (tuple(arrays[i] for i in op.saved), needs)

    def backward(residuals: Any, grad: Any) -> tuple[Any, ...]:
        saved, needs = residuals
        names = tuple(name for name in op.arrays if name in needs)
        found = iter(_execute(gradients, options._replace(needs=names), (grad, *saved)))
        return tuple(next(found) if name in needs else None for name in op.arrays)

    function.defvjp(forward, backward, symbolic_zeros=True)
    return jax.jit(function)


def call(op: Op, arrays: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on JAX arrays or tracers."""
    options = op.options(arguments)
    wanted = op.plan(_specs(arrays), options, CPU).results  # refuses bad arguments here, not inside XLA
    results = _function(op, options)(*arrays)
    if op.backward is not None:
        return (results,)
    found = iter(results)
    return tuple(None if result is None else next(found) for result in wanted)
