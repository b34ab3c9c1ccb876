"""Small libraries for the host's compiler to make."""

import ctypes
from pathlib import Path
from typing import Any

from cudakit import compiler, kernel_cache

TEXT = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'


def forget_surroundings() -> None:
    """Forget compiler and cache folder, for another environment."""
    for function in (kernel_cache._cache_dir, compiler.command, compiler.fingerprint):
        function.cache_clear()


def text_of(number: int) -> str:
    """Return a small source whose library answers with `number`."""
    return f"#define ANSWER {number}\n{TEXT}"


def answer(library: Path) -> int:
    """Ask a library for its number."""
    value: int = ctypes.CDLL(str(library)).answer()
    return value


def no_compile(*_: Any, **__: Any) -> Any:
    """Stand in for `subprocess.run` where nothing may be compiled."""
    raise AssertionError("a compiler was run")
