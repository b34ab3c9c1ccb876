"""The host's C++ compiler: which one it is, and how it is run. The only module that does."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cudakit.cpuinfo import native_target
from cudakit.errors import BackendUnavailable, CompileError

FLAGS = (
    *("-x", "c++", "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden"),
    # No contraction but where the text says so; no errno, traps, exceptions or run-time types to keep loops from SIMD.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-fopenmp-simd"),
    *("-g0", "-w"),
)
X86_FLAGS = ("-mprefer-vector-width=512",)
ZIG_FLAGS = ("-nostdlib++",)  # its C++ library would be built from source on first use; the kernels need none
REMEDY = "install g++ or clang++, or: pip install 'cudakit[cpu]'"


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the commands that could compile, best first: ``$CXX``, c++, g++, clang++, then the ziglang wheel.

    A ``$CXX`` that cannot be run raises `BackendUnavailable`: whoever sets it wants no other compiler.
    """
    chosen = _chosen()
    if chosen:
        yield chosen
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            yield (path,)
    if find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "c++", *ZIG_FLAGS)


def _chosen() -> tuple[str, ...]:
    """Return the command in ``$CXX``, which may have arguments, or nothing where it is unset or empty."""
    text = os.environ.get("CXX", "")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BackendUnavailable(f"$CXX must be a command, got {text!r}: {error}") from None
    if not words:
        return ()
    path = shutil.which(words[0])
    if path is None:
        remedy = f"install {words[0]!r}, or unset CXX and {REMEDY}"
        raise BackendUnavailable(f"$CXX must be a command, got {text!r}: no such command was found; {remedy}")
    zig = "ziglang" in words or Path(path).stem == "zig"
    return (str(Path(path).absolute()), *words[1:], *(ZIG_FLAGS if zig else ()))


@cache
def command() -> tuple[str, ...]:
    """Return the command of the C++ compiler, or raise `BackendUnavailable`."""
    for found in commands():
        return found
    raise BackendUnavailable(f"no C++ compiler found; {REMEDY}")


@cache
def fingerprint() -> bytes:
    """Return what a library depends on besides its text: flags, compiler and processor."""
    found = command()
    parts = [*found, *flags(), platform.machine(), sys.platform]
    spec = find_spec("ziglang") if "ziglang" in found else None
    binary = Path(spec.origin if spec is not None and spec.origin else found[0]).resolve()
    stat = binary.stat()
    parts += [str(binary), str(stat.st_size), str(stat.st_mtime_ns), native_target()]
    return "\0".join(parts).encode(errors="surrogateescape")


def flags() -> tuple[str, ...]:
    """Return the compiler's options on this machine."""
    return FLAGS + (X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())


def compile_library(text: str, target: Path) -> None:
    """Make a shared library of a source."""
    arguments = [*command(), *flags(), "-o", str(target), "-"]
    # Zig keeps what it builds for itself in a cache of its own, by default in the home, which may be read-only.
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(target.parent / "zig"), **os.environ}
    try:
        done = subprocess.run(
            arguments, input=text, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
        )
    except OSError as error:  # what is no program
        raise CompileError(f"{shlex.join(arguments)} failed", text, str(error)) from None
    if done.returncode != 0 or not target.stat().st_size:  # 0, too, where a parent has Python ignore SIGCHLD
        raise CompileError(f"{shlex.join(arguments)} failed with status {done.returncode}", text, done.stderr)
