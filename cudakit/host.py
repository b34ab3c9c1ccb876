"""The host's C++ compiler: kernels into shared libraries, a disk cache of them, and calls on all cores.

The only module that runs a compiler. A cache entry is the library followed by the SHA-256 of its bytes; whatever does
not match is a miss and is compiled anew. Entries appear by `os.replace`, so that processes need no lock: at worst those
that start together compile the same thing.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cudakit.cpuinfo import native_target
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.source import flatten

FLAGS = (
    *("-x", "c++", "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden"),
    # No contraction but where the text says so; no errno, traps, exceptions or run-time types to keep loops from SIMD.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-fopenmp-simd"),
    *("-g0", "-w"),
)
X86_FLAGS = ("-mprefer-vector-width=512",)
_JOB = struct.Struct("P3q").pack  # `Job` of `host_pool.cpp`
POOL = "host_pool.cpp"
DIGEST_SIZE = hashlib.sha256().digest_size
ZIG_FLAGS = ("-nostdlib++",)  # its C++ library would be built from source on first use; the kernels need none
REMEDY = "install g++ or clang++, or: pip install 'cudakit[cpu]'"


def compilers() -> Iterator[tuple[str, ...]]:
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
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise BackendUnavailable(f"$CXX must be a command, got {text!r}: {error}") from None
    if not command:
        return ()
    path = shutil.which(command[0])
    if path is None:
        remedy = f"install {command[0]!r}, or unset CXX and {REMEDY}"
        raise BackendUnavailable(f"$CXX must be a command, got {text!r}: no such command was found; {remedy}")
    zig = "ziglang" in command or Path(path).stem == "zig"
    return (str(Path(path).absolute()), *command[1:], *(ZIG_FLAGS if zig else ()))


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler, or raise `BackendUnavailable`."""
    for command in compilers():
        return command
    raise BackendUnavailable(f"no C++ compiler found; {REMEDY}")


@cache
def fingerprint() -> bytes:
    """Return what a library depends on besides its text: flags, compiler and processor."""
    command = compiler()
    parts = [*command, *flags(), platform.machine(), sys.platform]
    spec = find_spec("ziglang") if "ziglang" in command else None
    binary = Path(spec.origin if spec is not None and spec.origin else command[0]).resolve()
    stat = binary.stat()
    parts += [str(binary), str(stat.st_size), str(stat.st_mtime_ns), native_target()]
    return "\0".join(parts).encode(errors="surrogateescape")


def flags() -> tuple[str, ...]:
    """Return the compiler's options on this machine."""
    return FLAGS + (X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())


def cache_dir() -> Path:
    """Return the folder of compiled kernels: ``$CUDAKIT_CACHE_DIR``, the user's cache folder, or a temporary one."""
    folder = _cache_dir()
    if not folder.is_dir():  # removed meanwhile
        _cache_dir.cache_clear()
        folder = _cache_dir()
    return folder


def chosen_cache_dir() -> Path:
    """Return the folder for compiled kernels if it can be written; `RuntimeError` where no home is known."""
    chosen = os.environ.get("CUDAKIT_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs  # here, because it costs milliseconds that an import of cudakit need not pay

    return Path(platformdirs.user_cache_dir("cudakit", appauthor=False)).absolute()


@cache
def _cache_dir() -> Path:
    try:
        candidate = chosen_cache_dir()
        candidate.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=candidate):
            return candidate
    except (OSError, RuntimeError):  # a read-only home, for example, or none
        return _temporary_dir()


def _temporary_dir() -> Path:
    folder = tempfile.mkdtemp(prefix="cudakit-")
    atexit.register(_remove, folder, os.getpid())
    return Path(folder)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child, which ends earlier
        shutil.rmtree(folder, ignore_errors=True)


def _entries(text: str) -> list[Path]:
    """Return where a library may be: in the folder for new ones, and in the chosen one, which perhaps is read-only."""
    name = f"{hashlib.sha256(fingerprint() + text.encode()).hexdigest()[:40]}.so"
    folders = [cache_dir()]
    with suppress(RuntimeError):
        folders.append(chosen_cache_dir())
    return [folder / name for folder in dict.fromkeys(folders)]


def missing(texts: Iterable[str]) -> list[str]:
    """Return what has to be built for kernels of these texts, because the disk cache lacks it."""
    every = dict.fromkeys((*texts, flatten(POOL)))
    return [text for text in every if not any(entry.exists() for entry in _entries(text))]


def build(text: str, *, anew: bool = False) -> Path:
    """Return a shared library made from `text`, unless `anew` from the disk cache where it is there."""
    entries = _entries(text)
    intact = (entry for entry in entries if not anew and _intact(entry))
    return next(intact, None) or _make(text, entries[0])


def _make(text: str, entry: Path) -> Path:
    """Compile an entry, and return it."""
    try:
        handle, name = tempfile.mkstemp(suffix=".so", dir=entry.parent)
        os.close(handle)
        made = Path(name)
        try:
            _compile(text, made)
            payload = made.read_bytes()
            made.write_bytes(payload + hashlib.sha256(payload).digest())
            made.chmod(0o755)  # for whoever shares the folder
            made.replace(entry)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        remedy = "set CUDAKIT_CACHE_DIR to a folder that has room and may be written"
        raise CompileError(f"cannot write {entry}: {error.strerror}; {remedy}", text, "") from None
    return entry


def _intact(entry: Path) -> bool:
    try:
        content = entry.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_SIZE]).digest() == content[-DIGEST_SIZE:]


def _compile(text: str, target: Path) -> None:
    command = [*compiler(), *flags(), "-o", str(target), "-"]
    # Zig keeps what it builds for itself in a cache of its own, by default in the home, which may be read-only.
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig"), **os.environ}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
        )
    except OSError as error:  # what is no program
        raise CompileError(f"{shlex.join(command)} failed", text, str(error)) from None
    if done.returncode != 0 or not target.stat().st_size:  # 0, too, where a parent has Python ignore SIGCHLD
        raise CompileError(f"{shlex.join(command)} failed with status {done.returncode}", text, done.stderr)


def load(text: str) -> ctypes.CDLL:
    """Return what is compiled from `text`, loaded."""
    with suppress(OSError):
        return ctypes.CDLL(str(build(text)))
    entry = build(text, anew=True)  # the other was made by another system, perhaps, that shares the folder
    try:
        return ctypes.CDLL(str(entry))
    except OSError as error:  # a folder from which the system runs nothing, mounted "noexec"
        remedy = "set CUDAKIT_CACHE_DIR to a folder that programs may be run from"
        raise BackendUnavailable(f"cannot load {entry}: {error}; {remedy}") from None


@cache
def _pool() -> Any:
    """Return `parallel_run` of `host_pool.cpp`: run a kernel's items on several threads."""
    run = load(flatten(POOL)).parallel_run
    run.argtypes = (ctypes.c_char_p,)  # everything in one string: ctypes takes its time with each argument
    run.restype = None
    return run


class HostKernel:
    """A compiled kernel, ready to run on the cores of this machine."""

    def __init__(self, text: str, name: str) -> None:
        self._library = load(text)
        self._entry = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
        self._run = _pool()

    def launch(self, params: bytes, items: int, grain: int, threads: int, _stream: int) -> None:
        """Run items 0 ... `items` - 1; what shares a target stays together in a piece of `grain` items."""
        self._run(_JOB(self._entry, items, grain, threads) + params)
