"""How an axis that a framework maps over (``vmap``) becomes part of the batch."""

from collections.abc import Collection, Sequence
from typing import Any

from cudakit.op import Op


def foldable(op: Op, options: Any, mapped: Collection[str]) -> bool:
    """Whether one call with a larger batch does the work of the calls of a map.

    It does unless an array without a batch axis is mapped, or the gradient by one is asked for, which sums over the
    batch.
    """
    asked = options.needs if op.gradients_by else ()
    return not set(op.weights).intersection((*mapped, *asked))


def leader(op: Op, arrays: Sequence[Any]) -> int:
    """Return the position of an array that has the batch first."""
    named = enumerate(zip(op.arrays, arrays, strict=True))
    return next(i for i, (name, x) in named if x is not None and name not in op.weights)


def enlarged(options: Any, times: int) -> Any:
    """Return the options for a batch that is so many times as large."""
    return options._replace(batch=options.batch * times) if hasattr(options, "batch") else options
