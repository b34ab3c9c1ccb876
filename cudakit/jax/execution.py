"""How an operator runs inside XLA, which allocates the results and has a callback fill them in place, on its stream."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from math import prod
from operator import itemgetter
from typing import Any

import jax
from jax.experimental.buffer_callback import buffer_callback

from cudakit import dlpack
from cudakit.array import CPU, Device, Spec, contiguous_strides, dlpack_pointer, numpy_pointer
from cudakit.errors import InvalidArgument
from cudakit.op import PLANS, Op
from cudakit.plan import Output, Plan, zero_memory
from cudakit.settings import are_deterministic_algorithms_enabled, get_num_threads

Specs = tuple[Spec | None, ...]


def dense_specs(op: Op, arrays: Sequence[Any]) -> Specs:
    """Return the specs of arrays, tracers or their types; XLA's buffers are dense."""
    specs: list[Spec | None] = []
    for name, x in zip(op.arrays, arrays, strict=True):
        try:
            specs.append(x if x is None else _dense(x.shape, str(x.dtype)))
        except InvalidArgument as error:
            op.refuse(error, name)
    return tuple(specs)


@lru_cache(PLANS)
def _dense(shape: tuple[int, ...], dtype: str) -> Spec:
    if not all(isinstance(size, int) for size in shape):
        raise InvalidArgument("{}", "have sizes that are known when JAX traces", shape, TypeError)
    return Spec(shape, contiguous_strides(shape), dtype)


def _size(result: Output) -> int:
    """Return the bytes of a result."""
    return prod(result.shape) * int(jax.numpy.dtype(result.dtype).itemsize)


def filled_specs(op: Op, options: Any, specs: Specs) -> Specs:
    """Return the specs with that of the gradient by an operator's result, which may be left out.

    It may where only its own gradient is wanted, which does not depend on it.
    """
    missing = [i for i, spec in enumerate(specs) if spec is None and op.arrays[i] not in op.optional]
    if not missing:
        return specs
    (place,) = missing
    assert op.primal is not None and op.primal.primal is not None
    (result,) = op.primal.primal.outputs(specs[place + 1 :], options)
    assert result is not None
    return (*specs[:place], _dense(result.shape, result.dtype), *specs[place + 1 :])


def checked_results(op: Op, options: Any, specs: Specs) -> tuple[Output | None, ...]:
    """Return what the results look like, wherever XLA is going to run."""
    return op.results(specs, options, on_host=jax.default_backend() == "cpu")


def execute(op: Op, options: Any, arrays: Sequence[Any]) -> list[Any]:
    """Run an operator inside XLA and return the results that are there."""
    given = dense_specs(op, arrays)
    specs = filled_specs(op, options, given)
    wanted = [result for result in checked_results(op, options, specs) if result is not None]
    planned = cache(partial(_planned, op, options, given, specs))

    def fill(context: Any, results: Any, *buffers: Any) -> None:
        device, stream, table = _addresses(context, (*buffers, *results))
        aligned = device == CPU or not any(address % 16 for address in table)
        reproducible = are_deterministic_algorithms_enabled() and device != CPU
        plan, pick, zeros = planned(device, aligned, get_num_threads(), reproducible)
        for place, size in zeros:
            zero_memory(table[place], size, device, stream)
        plan.run(pick(table), stream)

    shapes = [jax.ShapeDtypeStruct(result.shape, jax.numpy.dtype(result.dtype)) for result in wanted]
    results: list[Any] = buffer_callback(fill, shapes)(*[x for x in arrays if x is not None])
    return results


def _addresses(context: Any, buffers: tuple[Any, ...]) -> tuple[Device, int, tuple[int, ...]]:
    """Return the device and stream that XLA calls from, and null before the addresses of its buffers."""
    kind, index = buffers[0].__dlpack_device__()
    if kind == dlpack.CPU:
        return CPU, 0, (0, *[numpy_pointer(x.__array__()) for x in buffers])  # takes a third of DLPack's time
    return ("cuda", index), context.stream, (0, *[dlpack_pointer(x) for x in buffers])


def _planned(
    op: Op,
    options: Any,
    given: Specs,
    specs: Specs,
    device: Device,
    aligned: bool,
    threads: int,
    reproducible: bool,
) -> tuple[Plan, Callable[..., Any], list[tuple[int, int]]]:
    """Return the plan, what picks its addresses from `_addresses`, and places and bytes of those that must be zero."""
    known = tuple(spec and spec._replace(aligned=aligned) for spec in specs)
    plan = op.plan(known, options, device, threads, reproducible=reproducible)
    count = itertools.count(1)
    inputs, outputs = ([0 if x is None else next(count) for x in some] for some in (given, plan.results))
    pairs = zip(outputs, plan.results, strict=True)
    zeros = [(place, _size(result)) for place, result in pairs if result is not None and result.zero]
    if specs != given:  # an array that was left out (`filled_specs`) is never read, but has the first result's address
        inputs = [place or (outputs[0] if spec else 0) for place, spec in zip(inputs, specs, strict=True)]
    return plan, itemgetter(*inputs, *outputs), zeros
