"""A few lines of C for what Python is too slow to see, compiled as the kernels are."""

import ctypes
from functools import cache

from cudakit.errors import BackendUnavailable, CompileError
from cudakit.host import load


@cache
def library(text: str) -> ctypes.CDLL | None:
    """Return the compiled text, None where there is no compiler (for a GPU) or no POSIX threads."""
    try:
        return load(text)
    except (BackendUnavailable, CompileError):
        return None
