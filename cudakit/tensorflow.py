"""TensorFlow: gradients through ``tf.GradientTape``, made from the `Op` records. The only module that imports it.

Inside ``tf.function`` an operator is a ``tf.py_function``: TensorFlow calls back to run it, so such a graph can neither
be saved without Python nor be compiled by XLA.
"""

from typing import Any

import tensorflow as tf

from cudakit.array import CPU, Spec, contiguous_strides
from cudakit.frameworks import wrapping_framework
from cudakit.op import Op


def _wrap(buffer: Any, dtype: str) -> Any:
    tensor = tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())
    return tf.bitcast(tensor, tf.bfloat16) if dtype == "bfloat16" else tensor


FRAMEWORK = wrapping_framework(_wrap)


def call(op: Op, tensors: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on tensors or variables, recording it for the tapes that watch."""
    options = op.options(arguments)
    present = [i for i, x in enumerate(tensors) if x is not None]
    gradients = op.backward

    def spread(values: Any) -> tuple[Any, ...]:
        found = dict(zip(present, values, strict=True))
        return tuple(found.get(i) for i in range(len(tensors)))

    if gradients is None:
        return _run(op, options, tensors)

    @tf.custom_gradient
    def function(*values: Any) -> tuple[Any, Any]:
        given = spread(values)

        def backward(grad: Any) -> list[Any]:
            needs = tuple(op.arrays[i] for i in present)
            found = _run(gradients, options._replace(needs=needs), (grad, *(given[i] for i in op.saved)))
            return [found[i] for i in present]

        return _run(op, options, given)[0], backward

    return (function(*(tf.convert_to_tensor(tensors[i]) for i in present)),)


def _run(op: Op, options: Any, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run at once, or lay out a call for the time when the graph runs."""
    if tf.executing_eagerly():
        return op.run(FRAMEWORK, tensors, options)
    looks = _looks(op, options, tensors)

    def later(*values: Any) -> list[Any]:
        left = iter(values)
        found = op.run(FRAMEWORK, tuple(x if x is None else next(left) for x in tensors), options)
        return [x for x in found if x is not None]

    dtypes = [tf.as_dtype(look[1]) for look in looks if look is not None]
    found = iter(tf.py_function(later, [x for x in tensors if x is not None], dtypes))
    return tuple(None if look is None else tf.ensure_shape(next(found), look[0]) for look in looks)


def _looks(op: Op, options: Any, tensors: tuple[Any, ...]) -> list[tuple[Any, str] | None]:
    """Return shape and dtype of each result; where all sizes are known, the arguments are checked as well."""
    specs = tuple(None if x is None else _spec(x) for x in tensors)
    if all(x is None or x.shape.is_fully_defined() for x in tensors):
        results = op.plan(specs, options, CPU).results
        return [None if x is None else (x.shape, x.dtype) for x in results]
    return [None if x is None else ([None] * len(x.shape), x.dtype) for x in op.outputs(specs, options)]


def _spec(x: Any) -> Spec:
    """Return what a tensor looks like, with 1 for a size that is not known yet."""
    shape = tuple([1 if size is None else size for size in x.shape])
    return Spec(shape, contiguous_strides(shape), x.dtype.name)
