"""Any framework's array as NumPy's, and back to the caller's kind."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cudakit import checks
from cudakit.array import CPU, Framework, View, dlpack_view, host_array
from cudakit.errors import UNREADABLE, InvalidArgument
from cudakit.frameworks import framework_of

Floats = NDArray[np.float64]

_MAKERS = {"torch": "as_tensor", "tensorflow": "convert_to_tensor", "paddle": "to_tensor"}


def read(argument: str, x: Any) -> tuple[Floats, str]:
    """Return the values of a floating array of any framework in float64, and the name of its dtype."""
    try:
        framework = framework_of(x)
        plain = x.detach() if hasattr(x, "detach") else x  # an array that autograd watches exports no memory
        view = framework.view(plain) if isinstance(framework, Framework) else dlpack_view(plain)
        if view.device != CPU:
            plain = _on_host(plain)
            view = dlpack_view(plain)
        checks.floating(argument, view.spec)
        values = plain.astype(np.float64, copy=False) if isinstance(plain, np.ndarray) else _values(view)
        return values, view.spec.dtype
    except InvalidArgument as error:
        raise InvalidArgument(argument, error.rule, error.got, error.kind) from None
    except UNREADABLE as error:
        raise InvalidArgument(argument, "be readable through DLPack", str(error), TypeError) from None


def returned(values: Floats, like: Any) -> Any:
    """Return values as an array of the kind of `like`, float64 beside float64 and float32 beside the rest.

    Where its library makes no arrays of NumPy's, NumPy's come back.
    """
    if like is None:
        return values
    framework = framework_of(like)
    values = values.astype(np.float64 if "float64" in str(getattr(like, "dtype", "")) else np.float32)
    if framework == "jax":
        return sys.modules["jax"].numpy.asarray(values)
    library = sys.modules[framework if isinstance(framework, str) else type(like).__module__.partition(".")[0]]
    make = getattr(library, _MAKERS.get(library.__name__, "asarray"), None)
    where = {"device": like.device} if framework == "torch" else {}
    return values if make is None else make(values, **where)


def _on_host(x: Any) -> Any:
    """Copy an array from a GPU: CuPy says `get`, PyTorch and Paddle say `cpu`, the others let NumPy ask."""
    for copy in ("get", "cpu"):
        if hasattr(x, copy):
            return getattr(x, copy)()
    return np.asarray(x)


def _values(view: View) -> Floats:
    """Copy what a view of the process's memory shows."""
    if 0 in view.spec.shape:  # and perhaps no address
        return np.zeros(view.spec.shape)
    seen = host_array(view)
    if view.spec.dtype == "bfloat16":  # the upper half of a float32
        seen = (seen.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    values: Floats = seen.astype(np.float64)
    return values
