"""Derivatives of operators made of other operators, which a framework runs in its own way.

All gradients are derivatives of one number, so its Hessian is symmetric: the double backward in a direction equals the
jvp of the gradients in that direction.
"""

from collections.abc import Callable, Collection
from typing import Any

from cudakit.errors import no_derivatives
from cudakit.op import Op

Arrays = tuple[Any, ...]  # and None for one that is not there
Run = Callable[[Op, Any, Arrays], Arrays]  # runs an operator with some options on some arrays


def direction_count(op: Op) -> int:
    """Return how many of the arrays of a double backward are directions, in which it is linear."""
    assert op.primal is not None
    return len(op.primal.gradients_by)


def jvp(run: Run, op: Op, options: Any, saved: Arrays, tangents: Arrays) -> Arrays:
    """Return the derivatives of an operator's results in a direction; `saved` holds what it saves, then its results."""
    arrays, gradients = saved[: len(op.saved)], op.backward
    if gradients is None:
        count = direction_count(op)
        if any(x is not None for x in tangents[count:]):
            raise no_second_jvp(op, options)
        return run(op, options, (*tangents[:count], *arrays[count:]))
    if op.primal is None:  # of the result, which is the gradient by its own gradient: any stands in for this
        double, given = gradients.backward, (saved[-1], *arrays)
        assert double is not None
        needed = options._replace(needs=gradients.arrays[:1])
        return run(double, needed, (*tangents, *[given[i] for i in gradients.saved]))[:1]
    first: Arrays = ()
    second: Arrays = ()
    if tangents[0] is not None:
        first = run(op, options, (tangents[0], *arrays[1:]))
    if any(x is not None for x in tangents[1:]):
        second = run(gradients, options, (*tangents[1:], *arrays))[1:]
    return sum_present(first, second)


def sum_present(first: Arrays, second: Arrays) -> Arrays:
    """Return the sums of results, either of which may be missing."""
    if not first or not second:
        return first or second
    pairs = zip(first, second, strict=True)
    return tuple(y if x is None else x if y is None else x + y for x, y in pairs)


def no_second_jvp(op: Op, options: Any) -> RuntimeError:
    """Return the exception to raise where a jvp of gradients' gradients is asked for.

    The first of them is the derivative of an operator's result: where only that is needed, a second one was wanted.
    """
    assert op.primal is not None
    twice = options.needs == op.primal.arrays[:1]
    return no_derivatives(op.name, *["second derivatives carried forward twice"] * twice)


def _matters(op: Op, *by: str) -> bool:
    """Whether an operator's derivative by these arrays, one after the other, may be other than zero."""
    once = [name for name in by if name not in op.nonlinear]
    return len(set(once)) == len(once) and (len(by) == 1 or not set(by).intersection(op.additive))


def nonzero(op: Op, needs: Collection[str], arrays: Arrays, *by: str) -> tuple[str, ...]:
    """Return which results of a double backward may be other than zero in the directions that are there.

    With `by`, which of their derivatives by that array, which is no direction.
    """
    assert op.primal is not None and op.primal.primal is not None
    of, gradient = op.primal.primal, op.primal.arrays[0]  # by the result, in which all but the first of them are linear
    along = [name for name, x in zip(of.arrays, arrays, strict=False) if x is not None]
    if gradient in by:
        return nonzero(op, [name for name in needs if name != gradient], arrays)
    return tuple(name for name in needs if any(_matters(of, t, *[name] * (name != gradient), *by) for t in along))


def double_backward_vjp(run: Run, op: Op, options: Any, arrays: Arrays, grads: Arrays) -> tuple[Arrays, list[str]]:
    """Return the gradients of a double backward by its arrays, and the names of those by which it has none.

    By the directions they are the derivatives of gradients in the direction of `grads`. By the others there are only
    those of the first result, the derivative of an operator's: they would be third derivatives, unless those are zero.
    """
    gradients, count = op.primal, direction_count(op)
    assert gradients is not None
    pairs = zip(gradients.gradients_by, op.arrays[:count], strict=True)
    wanted = tuple(name for name, direction in pairs if direction in options.needs)
    found: Arrays = (None,) * count
    if wanted:
        found = jvp(run, gradients, options._replace(needs=wanted), arrays[count:], grads)
    others = [name for name in op.arrays[count:] if name in options.needs]
    asked = [name for name, x in zip(gradients.arrays[1:], grads[1:], strict=False) if x is not None]
    refused = [name for name in others if nonzero(op, asked, arrays, name)]
    needs = tuple(name for name in others if name not in (*refused, *gradients.arrays[:1]))
    if grads[0] is None or not needs:
        return (*found, *[None] * (len(op.arrays) - count)), refused
    given = (*arrays[:count], grads[0], *arrays[count + 1 :])
    return (*found, *run(op, options._replace(needs=needs), given)), refused
