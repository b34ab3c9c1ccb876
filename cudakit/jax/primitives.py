"""Every operator as a primitive of JAX: how it runs, and how it is differentiated and mapped.

A primitive takes the arrays that are there, and returns the results that are. Its derivatives in a direction are linear
in it, so that transposed they are gradients (derivatives.py). A mapped axis becomes part of the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from cudakit.batching import enlarged, foldable
from cudakit.derivatives import Arrays, direction_count, double_backward_vjp, jvp, no_second_jvp, nonzero, sum_present
from cudakit.errors import no_derivatives
from cudakit.jax.execution import dense_specs, execute, filled_specs
from cudakit.jax.placing import leading, mesh_of, placed, typed, whole
from cudakit.op import OPS, Op, compact, spread

Results = list[Any]  # those that are there
Names = tuple[str, ...]


def apply(op: Op, options: Any, arrays: Arrays) -> Arrays:
    """Run an operator; return its results, None for one that is not there, or zero whatever the arrays hold."""
    if op.backward is None:
        options = options._replace(needs=nonzero(op, options.needs, arrays))
        if not options.needs:
            return (None,) * len(op.gradients_by)
    absent = tuple(name for name, x in zip(op.arrays, arrays, strict=True) if x is None)
    found = _OPERATORS[op.name].primitive.bind(*compact(arrays), options=options, absent=absent)
    return _spread(op, options, absent, found)


def _filled(op: Op, absent: Names, given: Sequence[Any]) -> Arrays:
    """Return what is given in the places of the arrays that are not absent."""
    return spread([name not in absent for name in op.arrays], given)


def _spread(op: Op, options: Any, absent: Names, found: Sequence[Any]) -> Arrays:
    """Return results in their places."""
    return spread(op.present(options, absent), found)


def _nonzero(values: Sequence[Any]) -> list[Any]:
    return [None if isinstance(x, ad.Zero) else x for x in values]


def _primitive(name: str, run: Callable[..., Results], types: Callable[..., Results], rule: Any) -> Any:
    """Return a new primitive that XLA runs, and that is mapped by a rule."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(types)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    batching.primitive_batchers[primitive] = rule
    return primitive


class _Operator:
    """The primitive of an operator, and its rules; and where it has no gradients that of its derivatives, the third."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.primitive = _primitive(op.name, self.run, self.abstract_eval, self.batching_rule)
        ad.primitive_jvps[self.primitive] = self.jvp_rule
        # Gradients are linear in those of the results; theirs, in their directions.
        ad.primitive_transposes[self.primitive] = self.transpose_rule if op.primal is None else self.transpose_gradients
        if op.backward is None:
            self.third = _primitive(
                f"{op.name}_jvp", self.refuse_third, self.third_abstract_eval, self.third_batching_rule
            )
            ad.primitive_jvps[self.third] = self.third_jvp_rule
            ad.primitive_transposes[self.third] = self.third_transpose_rule

    def run(self, *given: Any, options: Any, absent: Names) -> Results:
        """Run it inside XLA."""
        return execute(self.op, options, _filled(self.op, absent, given))

    def abstract_eval(self, *given: Any, options: Any, absent: Names) -> Results:
        """Return the types of the results, without checks."""
        specs = filled_specs(self.op, options, dense_specs(self.op, _filled(self.op, absent, given)))
        results = compact(self.op.outputs(specs, options))
        return [typed(given[0], result.shape, jax.numpy.dtype(result.dtype)) for result in results]

    def batching_rule(self, given: Sequence[Any], axes: Sequence[Any], *, options: Any, absent: Names) -> Any:
        """Run it with one axis more."""
        names = [name for name in self.op.arrays if name not in absent]
        return _mapped(self.op, names, partial(self.primitive.bind, absent=absent), given, axes, options)

    def jvp_rule(self, given: Sequence[Any], tangents: Sequence[Any], *, options: Any, absent: Names) -> Any:
        """Return the results and their derivatives in a direction."""
        op, params = self.op, {"options": options, "absent": absent}
        arrays, along = (_filled(op, absent, x) for x in (given, _nonzero(tangents)))
        results = self.primitive.bind(*given, **params)
        count = direction_count(op) if op.backward is None else len(along)
        none = (None,) * (len(along) - count)
        found: Arrays = ()
        if any(x is not None for x in along[:count]):
            saved = (*[arrays[i] for i in op.saved], None)
            found = jvp(apply, op, options, saved, (*along[:count], *none))
        third = self.third_derivatives(given, along[count:], **params)
        changes = dict(enumerate(sum_present(found, third)))  # none where it is zero
        places = [i for i, there in enumerate(op.present(options, absent)) if there]
        pairs = ((changes.get(i), result) for i, result in zip(places, results, strict=True))
        return results, [ad.Zero(jax.typeof(x).to_tangent_aval()) if change is None else change for change, x in pairs]

    def transpose_rule(self, grads: Sequence[Any], *given: Any, options: Any, absent: Names) -> Results:
        """Return the gradient by the one array that is not known, in which the result is linear."""
        op, arrays = self.op, _filled(self.op, absent, given)
        unknown = tuple(name for name, x in zip(op.arrays, arrays, strict=True) if ad.is_undefined_primal(x))
        if len(unknown) > 1 or unknown[0] in op.nonlinear:
            linear = ", ".join(name for name in op.arrays if name not in op.nonlinear)
            raise NotImplementedError(f"{op.name}: can be transposed only with respect to one of {linear}")
        # Zeros in its place, on which its own gradient does not depend.
        standing = [ad.instantiate_zeros(ad.Zero(x.aval)) if ad.is_undefined_primal(x) else x for x in arrays]
        assert op.backward is not None
        given_back = (grads[0], *[standing[i] for i in op.saved])
        found = apply(op.backward, options._replace(needs=unknown), given_back)
        named = dict(zip(op.arrays, found, strict=True))
        return [named[name] for name in op.arrays if name not in absent]

    def transpose_gradients(self, grads: Sequence[Any], *given: Any, options: Any, absent: Names) -> Results:
        """Return the gradients by the arrays in which the results are linear."""
        op, arrays = self.op, _filled(self.op, absent, given)
        unknown = [ad.is_undefined_primal(x) for x in arrays]
        known = tuple(None if flag else x for x, flag in zip(arrays, unknown, strict=True))
        by_results = _spread(op, options, absent, _nonzero(grads))
        linear = op.arrays[: direction_count(op) if op.backward is None else 1]
        if any(unknown[len(linear) :]):
            raise NotImplementedError(f"{op.name}: can be transposed only with respect to {', '.join(linear)}")
        if op.backward is None:
            needs = tuple(name for name, flag in zip(linear, unknown, strict=False) if flag)
            found, _ = double_backward_vjp(apply, op, options._replace(needs=needs), known, by_results)
        else:
            assert op.primal is not None
            found = jvp(apply, op.primal, options, (*known[1:], None), by_results)
        named = dict(zip(linear, found, strict=False))
        return [named.get(name) for name in op.arrays if name not in absent]

    def third_derivatives(self, given: Sequence[Any], along: Arrays, *, options: Any, absent: Names) -> Arrays:
        """Return the change of gradients' gradients where their arrays change, directions aside: third derivatives.

        Of the first result, which is an operator's derivative, they are second ones, and these can be pulled back.
        """
        op, first = self.op, len(self.op.arrays) - len(along)
        arrays, changes = _filled(op, absent, given), zip(op.arrays[first:], along, strict=True)
        changing = [(name, x) for name, x in changes if x is not None and nonzero(op, options.needs, arrays, name)]
        if not changing:
            return ()
        names, tangents = zip(*changing, strict=True)
        found = self.third.bind(*tangents, *given, options=options, absent=absent, along=names)
        return _spread(op, options, absent, found)

    def refuse_third(self, *_given: Any, options: Any, **_params: Any) -> Results:
        """Refuse to compute what `third_derivatives` returns: only now is it known that anybody wants it."""
        raise no_second_jvp(self.op, options)

    def third_abstract_eval(self, *given: Any, along: Names, **params: Any) -> Results:
        """Return the types of what `third_derivatives` does."""
        return self.abstract_eval(*given[len(along) :], **params)

    def third_batching_rule(
        self, given: Sequence[Any], axes: Sequence[Any], *, options: Any, absent: Names, along: Names
    ) -> Any:
        """Return what `third_derivatives` does with one axis more."""
        names = [*along, *(name for name in self.op.arrays if name not in absent)]
        bind = partial(self.third.bind, absent=absent, along=along)
        return _mapped(self.op, names, bind, given, axes, options)

    def third_jvp_rule(self, given: Sequence[Any], tangents: Sequence[Any], *, along: Names, **params: Any) -> Any:
        """Return what `third_derivatives` does, and its change with the tangents, in which it is linear."""
        count = len(along)
        results = self.third.bind(*given, along=along, **params)
        if not all(isinstance(x, ad.Zero) for x in tangents[count:]):
            raise no_derivatives(self.op.name)
        new = [ad.instantiate_zeros(x) for x in tangents[:count]]
        return results, self.third.bind(*new, *given[count:], along=along, **params)

    def third_transpose_rule(
        self, grads: Sequence[Any], *given: Any, options: Any, absent: Names, along: Names
    ) -> Results:
        """Return the gradients of an operator's derivative by its arrays."""
        arrays, op = _filled(self.op, absent, given[len(along) :]), self.op
        by_results = _spread(op, options, absent, _nonzero(grads))
        found, refused = double_backward_vjp(apply, op, options._replace(needs=along), arrays, by_results)
        if refused:
            raise no_derivatives(op.name)
        named = dict(zip(op.arrays, found, strict=True))
        return [*map(named.get, along), *[None] * (len(given) - len(along))]


def _mapped(
    op: Op, names: Sequence[str], bind: Any, given: Sequence[Any], axes: Sequence[Any], options: Any
) -> tuple[Results, list[int]]:
    """Call a primitive on arrays that have an axis more, or None: at once with a larger batch, or one by one."""
    flags = [axis is not None for axis in axes]
    ahead = [x if axis is None else jax.numpy.moveaxis(x, axis, 0) for x, axis in zip(given, axes, strict=True)]
    arrays = [whole(x) for x in ahead]
    count = next(len(x) for x, flag in zip(arrays, flags, strict=True) if flag)
    if foldable(op, options, [name for name, flag in zip(names, flags, strict=True) if flag]):
        first = next(i for i, name in enumerate(names) if name not in op.weights)
        batch = arrays[first].shape[int(flags[first])]
        larger = [
            x if name in op.weights else _folded(x, count, flag)
            for name, x, flag in zip(names, arrays, flags, strict=True)
        ]
        found = bind(*larger, options=enlarged(options, count))
        results = [x.reshape(count, batch, *x.shape[1:]) for x in found]
    else:
        rows = [x if flag else None for x, flag in zip(arrays, flags, strict=True)]

        def one(row: Sequence[Any]) -> Results:
            return bind(*[x if own is None else own for x, own in zip(arrays, row, strict=True)], options=options)

        results = jax.lax.map(one, rows)
    mapping = leading(x for x, flag in zip(ahead, flags, strict=True) if flag)
    mesh = mesh_of(ahead)
    return [placed(x, mesh, mapping) for x in results], [0] * len(results)


def _folded(x: Any, count: int, mapped: bool) -> Any:
    """Make a leading axis, or copies, part of the batch."""
    copies = x if mapped else jax.numpy.broadcast_to(x, (count, *x.shape))
    return copies.reshape(count * copies.shape[1], *copies.shape[2:])


_OPERATORS = {name: _Operator(op) for name, op in OPS.items()}
