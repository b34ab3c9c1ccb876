"""JAX: every operator under `jit`, `grad` and `vmap`, made from its `Op` record. The only module that imports jax.

XLA allocates the results and a buffer callback fills them in place, on XLA's stream: nothing is copied. A mapped axis
becomes part of the batch.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from math import prod
from operator import itemgetter
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.experimental.buffer_callback import buffer_callback
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cudakit import dlpack
from cudakit.array import CPU, Device, Spec, contiguous_strides, dlpack_pointer, numpy_pointer
from cudakit.batching import enlarged, foldable, leader
from cudakit.derivatives import pulled_back
from cudakit.errors import InvalidArgument, no_derivatives
from cudakit.launch import get_num_threads
from cudakit.op import PLANS, Op
from cudakit.plan import Output, Plan, zero_memory


def _specs(op: Op, arrays: Sequence[Any]) -> tuple[Spec | None, ...]:
    """Return the specs of arrays or tracers; XLA's buffers are dense."""
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


def _execute(op: Op, options: Any, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Run an operator inside XLA and return the results that are there."""
    specs = _specs(op, arrays)
    wanted = [result for result in op.plan(specs, options, CPU).results if result is not None]

    def fill(context: Any, results: Any, *buffers: Any) -> None:
        kind, index = buffers[0].__dlpack_device__()
        if kind == dlpack.CPU:
            device, stream, aligned = CPU, 0, True
            table = (0, *[numpy_pointer(x.__array__()) for x in (*buffers, *results)])  # takes a third of DLPack's time
        else:
            device, stream = ("cuda", index), context.stream
            table = (0, *[dlpack_pointer(x) for x in (*buffers, *results)])
            aligned = not any(address % 16 for address in table)
        plan, pick, zeros = planned(device, aligned, get_num_threads())
        for place, size in zeros:
            zero_memory(table[place], size, device, stream)
        plan.run(pick(table), device, stream)

    @cache
    def planned(device: Device, aligned: bool, _threads: int) -> tuple[Plan, Callable[..., Any], list[tuple[int, int]]]:
        """Return the plan, what picks its addresses from (null, buffers, results), and which of those must be zero."""
        plan = op.plan(tuple(spec and spec._replace(aligned=aligned) for spec in specs), options, device)
        count = itertools.count(1)
        places = [0 if x is None else next(count) for x in (*specs, *plan.results)]
        outputs = zip(places[len(specs) :], plan.results, strict=True)
        zeros = [(place, _size(result)) for place, result in outputs if result is not None and result.zero]
        return plan, itemgetter(*places), zeros

    shapes = [jax.ShapeDtypeStruct(result.shape, jax.numpy.dtype(result.dtype)) for result in wanted]
    call = buffer_callback(fill, shapes, vmap_method="sequential")
    given = [x for x in arrays if x is not None]
    axes = frozenset().union(*map(_varying, given))
    mesh = _mesh(given)
    return tuple(_cast(_placed(x, mesh), axes) for x in call(*given))


@cache
def _mappable(op: Op, options: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the operator as a function of its arrays that is mapped by a larger batch where that is the same."""

    @custom_vmap
    def function(*arrays: Any) -> tuple[Any, ...]:
        return _execute(op, options, arrays)

    @function.def_vmap
    def rule(count: int, mapped: Sequence[Any], *given: Any) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
        arrays = [_whole(x) for x in given]
        names = [name for name, flag in zip(op.arrays, mapped, strict=True) if flag]
        if foldable(op, options, names):
            first = leader(op, arrays)
            batch = arrays[first].shape[1 if mapped[first] else 0]
            larger = [_fold(op, name, x, count, name in names) for name, x in zip(op.arrays, arrays, strict=True)]
            found = _mappable(op, enlarged(options, count))(*larger)
            results = tuple(x.reshape(count, batch, *x.shape[1:]) for x in found)
        else:
            rows = [x if name in names else None for name, x in zip(op.arrays, arrays, strict=True)]
            results = jax.lax.map(lambda row: function(*map(_either, row, arrays)), rows)
        mesh, mapping = _mesh(given), _leading(x for x, flag in zip(given, mapped, strict=True) if flag)
        return tuple(_placed(x, mesh, mapping) for x in results), (True,) * len(results)

    return function


def _either(x: Any, otherwise: Any) -> Any:
    return otherwise if x is None else x


def _fold(op: Op, name: str, x: Any, count: int, mapped: bool) -> Any:
    """Make a leading axis, or copies, part of the batch."""
    if x is None or name in op.weights:
        return x
    copies = x if mapped else jax.numpy.broadcast_to(x, (count, *x.shape))
    return copies.reshape(count * copies.shape[1], *copies.shape[2:])


@cache
def _function(op: Op, options: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the operator as a jitted function of its arrays, differentiable where it has gradients."""
    function = _operator(op, options)
    return jax.jit(lambda *arrays: function(*_alike(arrays)))


@cache
def _operator(op: Op, options: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the operator with its gradients.

    One without refuses only where they are wanted, so what is stopped can use it.
    """
    operator, gradients = _mappable(op, options), op.backward

    @jax.custom_vjp
    def function(*arrays: Any) -> tuple[Any, ...]:
        return operator(*arrays)

    def forward(*primals: Any) -> tuple[Any, Any]:
        arrays = tuple(primal and primal.value for primal in primals)
        # What is needed travels in the shape of an empty array: JAX may pair these residuals with a structure from
        # another trace, so the structure must be the same every time.
        needed = [int(primal is not None and primal.perturbed) for primal in primals]
        return function(*arrays), (tuple(arrays[i] for i in op.saved), jax.numpy.empty((*needed, 0)))

    def backward(residuals: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        saved, marks = residuals
        needs = tuple(name for name, needed in zip(op.arrays, marks.shape, strict=False) if needed)
        given, needed = _given(op, options, saved, grads), options._replace(needs=needs)
        if gradients is not None:
            return _run(gradients, needed, (*given, *saved))
        found, refused = pulled_back(_run, op, needed, saved, given)
        if refused:
            raise no_derivatives(op.name)
        return found

    function.defvjp(forward, backward, symbolic_zeros=True)
    return function


def _run(op: Op, options: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator; return its results, None for one that is not there."""
    return _spread(op, options, _absent(op.arrays, arrays), _operator(op, options)(*arrays))


def _given(op: Op, options: Any, saved: Sequence[Any], grads: Sequence[Any]) -> tuple[Any, ...]:
    """Return the gradient by each result, None for one that is not there, or that nothing depends on."""
    absent = _absent([op.arrays[i] for i in op.saved], saved)
    return _spread(op, options, absent, [None if isinstance(grad, SymbolicZero) else grad for grad in grads])


def _absent(names: Iterable[str], arrays: Iterable[Any]) -> list[str]:
    return [name for name, x in zip(names, arrays, strict=True) if x is None]


def _spread(op: Op, options: Any, absent: Sequence[str], found: Sequence[Any]) -> tuple[Any, ...]:
    """Return results in their places, None where one is not there."""
    left = iter(found)
    return tuple(next(left) if there else None for there in op.present(options, absent))


def _mesh(arrays: Iterable[Any]) -> Any:
    """Return the mesh in the types of some arrays, or None where it has no explicit axes."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if x is not None)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def _placed(x: Any, mesh: Any, *axes: Any) -> Any:
    """Shard the leading dimensions over explicit axes of a mesh, and no others."""
    return x if mesh is None else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*axes)))


def _whole(x: Any) -> Any:
    """Gather what is sharded explicitly: a callback sees whole arrays, and JAX reshapes no sharded axis unasked."""
    return _placed(x, _mesh([x]))


def _leading(arrays: Iterable[Any]) -> Any:
    """Return the explicit axes of a mesh over which an axis that `vmap` maps is sharded."""
    return next(filter(None, (jax.typeof(x).sharding.spec[0] for x in arrays)), None)


def _varying(x: Any) -> frozenset[Any]:
    """Return the axes of a mesh along which an array differs, inside ``shard_map``."""
    kind = jax.typeof(x)
    found: frozenset[Any] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return found


def _cast(x: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(axes - _varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _alike(arrays: Sequence[Any]) -> list[Any]:
    """Gather all arrays, and let all differ along the axes along which one does, as the operators of JAX do."""
    axes = frozenset().union(*(_varying(x) for x in arrays if x is not None))
    return [x if x is None else _cast(_whole(x), axes) for x in arrays]


def call(op: Op, arrays: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on JAX arrays or tracers."""
    options = op.options(arguments)
    wanted = op.plan(_specs(op, arrays), options, CPU).results  # refuses bad arguments here, not inside XLA
    found = iter(_function(op, options)(*arrays))
    return tuple(None if result is None else next(found) for result in wanted)
