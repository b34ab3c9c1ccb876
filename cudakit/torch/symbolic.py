"""``torch.fx.symbolic_trace``: every operator becomes one node, a call of the function of its name in this module."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch.fx import Proxy

from cudakit.op import OPS, Op


def is_symbolic(arrays: tuple[Any, ...]) -> bool:
    """Whether one of them stands for a tensor that is not there yet."""
    return any(isinstance(x, Proxy) for x in arrays)


def record(op: Op, arrays: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Proxy, ...]:
    """Make a node of a call, which is checked when the graph runs, and return what stands for its results."""
    tracer = next(x.tracer for x in arrays if isinstance(x, Proxy))
    found = tracer.create_proxy("call_function", _function(op), (*arrays, *arguments), {})
    return tuple([found[i] for i in range(len(op.gradients_by))]) if op.gradients_by else (found,)


@cache
def _function(op: Op) -> Callable[..., Any]:
    """Return a function of the arrays, then the other arguments, of an operator."""
    count = len(op.arrays)

    def function(*values: Any) -> Any:
        found = op(values[:count], *values[count:])
        return found if op.gradients_by else found[0]

    function.__name__ = function.__qualname__ = op.name
    return function


def __getattr__(name: str) -> Callable[..., Any]:
    """Return the function of an operator, by whose name the code of a graph imports it."""
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(OPS[name])
