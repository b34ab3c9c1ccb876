"""Where CuPy has its error."""

from ..compiler import CompileException

__all__ = ["CompileException"]
