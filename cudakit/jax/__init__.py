"""JAX: every operator under its transforms, made from its `Op` record. Operators reach it by this package alone.

Each is a primitive, so derivatives in both directions, maps and control flow compose as they do for JAX's own
operators.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax

from cudakit.errors import InvalidArgument
from cudakit.jax.execution import checked_results, dense_specs
from cudakit.jax.placing import alike
from cudakit.jax.primitives import apply
from cudakit.op import PLANS, Op


@lru_cache(PLANS)
def _function(op: Op, options: Any) -> Callable[..., tuple[Any, ...]]:
    """Return the operator as a jitted function of its arrays."""
    return jax.jit(lambda *arrays: apply(op, options, alike(arrays)))


def call(op: Op, arrays: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run an operator on JAX arrays or tracers."""
    options = op.options(arguments)
    checked_results(op, options, dense_specs(op, arrays))  # refuses bad arguments here, not inside XLA
    try:
        return _function(op, options)(*arrays)
    except ValueError:
        _check_devices(op, arrays)
        raise


def _check_devices(op: Op, arrays: tuple[Any, ...]) -> None:
    """Refuse arrays of different devices, which XLA does not take together."""
    given = [(name, x) for name, x in zip(op.arrays, arrays, strict=True) if isinstance(x, jax.Array)]
    placed = [(name, x.devices()) for name, x in given if not isinstance(x, jax.core.Tracer)]
    for name, devices in placed[1:]:
        leader, first = placed[0]
        if devices != first:
            op.refuse(
                InvalidArgument(name, f"be on the device of {leader}, {_shown(first)}", _shown(devices), TypeError)
            )


def _shown(devices: Iterable[Any]) -> str:
    return ", ".join(sorted(f"{device.platform}:{device.id}" for device in devices))
