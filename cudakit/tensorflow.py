"""TensorFlow: gradients through ``tf.GradientTape``, made from the `Op` records. Operators reach it by this alone.

Inside ``tf.function`` an operator is a ``tf.py_function``: TensorFlow calls back to run it, so such a graph can neither
be saved without Python nor be compiled by XLA.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import tensorflow as tf

from cudakit import checks
from cudakit.array import Spec, contiguous_strides
from cudakit.errors import InvalidArgument, no_derivatives, raised_by
from cudakit.frameworks import wrapping_framework
from cudakit.op import Op, compact, spread

STAND_INS = (1009, 2003)  # for sizes that are not known yet: what comes of both is known


def _wrap(buffer: Any, dtype: str) -> Any:
    tensor = tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())
    return tf.bitcast(tensor, tf.bfloat16) if dtype == "bfloat16" else tensor


FRAMEWORK = wrapping_framework(_wrap)


def call(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on tensors or variables, recording it for the tapes that watch."""
    tensors = tuple(None if x is None else tf.convert_to_tensor(x) for x in tensors)
    _check(op, tensors)
    return _recorded(op, _options(op, tensors, arguments), tensors)


def _options(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """Return the checked options; a batch that a graph does not know is that of the first array, None until it runs."""
    if not tf.executing_eagerly() and any(map(_is_open, arguments)):
        with suppress(InvalidArgument):
            options = op.check(*[(0, *x[1:]) if _is_open(x) else x for x in arguments])
            if hasattr(options, "batch"):
                return options._replace(batch=next(iter(tensors[0].shape), 0))
    return op.options(arguments)


def _is_open(argument: Any) -> bool:
    """Whether this is the shape of a batch of unknown size."""
    shaped = isinstance(argument, (tuple, list)) or (isinstance(argument, tf.TensorShape) and argument.rank is not None)
    return shaped and len(argument) > 0 and argument[0] is None


def _closed(options: Any, arrays: Sequence[Any]) -> Any:
    """Return options of a known batch, that of the first of these arrays or specs."""
    return options._replace(batch=arrays[0].shape[0]) if getattr(options, "batch", 0) is None else options


def _recorded(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator, with its gradients for the tapes that watch; one that has none refuses."""
    if not getattr(options, "needs", True):
        return _run(op, options, tensors)
    results = list[Any]()  # unannotated, or AutoGraph warns

    @tf.custom_gradient
    def function(*values: Any) -> tuple[Any, Any]:
        given = _in_places(tensors, values)
        results[:] = _run(op, options, given)

        def backward(*grads: Any) -> list[Any]:
            if op.backward is None:
                raise no_derivatives(op.name)
            present = [i for i, x in enumerate(given) if x is not None]
            needed = options._replace(needs=tuple(op.arrays[i] for i in present))
            dense = map(tf.convert_to_tensor, grads)  # those of `tf.gather` are slices
            found = _recorded(op.backward, needed, (*_in_places(results, dense), *(given[i] for i in op.saved)))
            return [found[i] for i in present]

        return compact(results), backward

    return _in_places(results, function(*compact(tensors)))


def _check(op: Op, tensors: tuple[Any, ...]) -> None:
    """Refuse what DLPack cannot show, and what a graph does not say enough about."""
    with raised_by(op.name):
        for name, x in zip(op.arrays, tensors, strict=True):
            if x is not None:
                checks.floating(name, Spec((), (), x.dtype.name))
            if x is not None and x.shape.rank is None:
                raise InvalidArgument(name, "have a known number of dimensions inside tf.function", x.shape)


def _in_places(places: Sequence[Any], values: Iterable[Any]) -> tuple[Any, ...]:
    """Return values in the places of what is not None."""
    return spread([place is not None for place in places], values)


def _run(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run at once, or lay out a call for the time when the graph runs."""
    if tf.executing_eagerly():
        return op.run(FRAMEWORK, tensors, options)
    looks = _looks(op, options, tensors)

    def later(*values: Any) -> list[Any]:
        given = _in_places(tensors, values)
        return compact(op.run(FRAMEWORK, given, _closed(options, given)))

    dtypes = [tf.as_dtype(look[1]) for look in looks if look is not None]
    found = iter(tf.py_function(later, compact(tensors), dtypes) if dtypes else ())
    return tuple(None if look is None else tf.ensure_shape(next(found), look[0]) for look in looks)


def _looks(op: Op, options: Any, tensors: tuple[Any, ...]) -> list[tuple[Any, str] | None]:
    """Return shape and dtype of each result; where all sizes are known, the arguments are checked as well."""
    first, second = (tuple(None if x is None else _spec(x, unknown) for x in tensors) for unknown in STAND_INS)
    if first == second:
        results = op.results(first, options, on_host=not tf.config.list_physical_devices("GPU"))
        return [None if x is None else (x.shape, x.dtype) for x in results]
    pairs = zip(*(op.outputs(specs, _closed(options, specs)) for specs in (first, second)), strict=True)
    return [None if x is None or y is None else (_agreed(x.shape, y.shape), x.dtype) for x, y in pairs]


def _agreed(sizes: tuple[int, ...], others: tuple[int, ...]) -> list[int | None]:
    return [size if size == other else None for size, other in zip(sizes, others, strict=True)]


def _spec(x: Any, unknown: int) -> Spec:
    """Return what a tensor looks like, with a number for the sizes that are not known yet."""
    shape = tuple([unknown if size is None else size for size in x.shape])
    return Spec(shape, contiguous_strides(shape), x.dtype.name)
