"""Which adapter of a framework serves a call; none is imported before its framework's first array."""

import sys
from collections.abc import Callable
from typing import Any


def is_traced() -> bool:
    """Whether ``torch.compile`` reads this code instead of running it."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def adapter(framework: str) -> Callable[..., tuple[Any, ...]]:
    """Import the adapter of a framework, by statements that ``torch.compile`` can trace."""
    match framework:
        case "torch":
            from cudakit import torch

            return torch.call
        case "jax":
            from cudakit import jax

            return jax.call
        case "tensorflow":
            from cudakit import tensorflow

            return tensorflow.call
        case _:
            from cudakit import paddle

            return paddle.call
