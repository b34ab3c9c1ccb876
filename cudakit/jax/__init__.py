"""JAX: every operator under its transforms, made from its `Op` record. The only package that imports jax.

Each is a primitive, so derivatives in both directions, maps and control flow compose as they do for JAX's own
operators.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

from cudakit.array import CPU
from cudakit.jax.execution import dense_specs
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
    op.plan(dense_specs(op, arrays), options, CPU)  # refuses bad arguments here, not inside XLA
    return _function(op, options)(*arrays)
