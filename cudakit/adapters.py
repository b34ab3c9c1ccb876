"""Which adapter of a framework serves a call; none is imported before its framework's first array."""

import sys
from collections.abc import Callable
from typing import Any


def is_traced() -> bool:
    """Whether ``torch.compile`` reads this code instead of running it."""
    torch = sys.modules.get("torch")
    try:
        return torch is not None and torch.compiler.is_dynamo_compiling()
    except AttributeError:  # another thread is importing it
        return False


def adapter(framework: str) -> Callable[..., tuple[Any, ...]]:
    """Import the adapter of a framework, by statements that ``torch.compile`` and ``tf.function`` can trace."""
    if framework == "torch":
        from cudakit import torch

        return torch.call
    if framework == "jax":
        from cudakit import jax

        return jax.call
    if framework == "tensorflow":
        from cudakit import tensorflow

        return tensorflow.call
    from cudakit import paddle

    return paddle.call
