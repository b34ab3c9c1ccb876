"""What the sub-commands of the command line share: errors of the user, extras, and the device to work on."""

import argparse
import codecs
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cudakit import compiler
from cudakit.settings import get_num_threads

PLAINLY = "cudakit.plainly"  # the name of `_plainly` among the error handlers of codecs
MINUS = "\N{MINUS SIGN}"


class UserError(Exception):
    """Something that the user can put right; shown as one line, without a traceback."""


class Backend(NamedTuple):
    """Where to work: the arrays' module (NumPy or CuPy), how to wait for its device, and what to call it."""

    xp: Any
    synchronize: Callable[[], None]
    description: str


def require(modules: Mapping[str, str], extra: str) -> None:
    """Raise `UserError` where a module of an extra is missing.

    Parameters
    ----------
    modules : mapping
        Module to import -> the name that its users know.
    extra : str
        The extra of cudakit that installs them.
    """
    missing = [name for module, name in modules.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"needs {' and '.join(missing)}; install with: pip install 'cudakit[{extra}]'")


def whole(smallest: int, largest: int) -> Callable[[str], int]:
    """Return what reads a whole number of an option."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not smallest <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {smallest} to {largest}, got {text!r}")
        return int(text)

    return parse


def check_writable(out: Path, option: str) -> None:
    """Raise `UserError` where a file could not be written, before the work rather than after it."""
    target = out.resolve()  # of a link, which may lead to what is not there yet
    if not target.parent.is_dir():
        raise UserError(f"{option}: there is no folder {out.parent}")
    if target.is_dir():
        raise UserError(f"{option}: {out} is a folder")
    existed = target.exists()
    try:
        target.open("ab").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise UserError(f"{option}: cannot write {out}: {error.strerror}") from None


def write_plainly(stream: Any) -> None:
    """Let a stream write what its encoding lacks as "?", but a minus sign as "-", without which numbers are wrong."""
    codecs.register_error(PLAINLY, _plainly)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=PLAINLY)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        return codecs.replace_errors(error)
    lacking = error.object[error.start : error.end]
    return "".join("-" if character == MINUS else "?" for character in lacking), error.end


def make_console(**options: Any) -> Any:
    """Return Rich's console, which leaves it to `cudakit.__main__` what to do where nobody reads on."""
    from rich.console import Console

    def stop() -> None:
        raise BrokenPipeError

    console = Console(**options)
    console.on_broken_pipe = stop
    return console


def choose_backend(device: str | None) -> Backend:
    """Return the back end called `device`; None takes CUDA where it works and the CPU otherwise."""
    if device == "cuda":
        return _cuda()
    if device is None and find_spec("cupy") is not None:
        try:
            return _cuda()
        except Exception:  # a broken CuPy raises whatever it likes, and nobody asked for it
            pass
    compiler.command()  # raises where there is none, before any work is done
    threads = get_num_threads()
    return Backend(np, lambda: None, f"the CPU, {threads} thread{'s'[: threads != 1]}")


def _cuda() -> Backend:
    cuda = import_module("cudakit.cuda")  # raises where CuPy is missing, naming the command that installs it
    if cuda.device_count() == 0:
        raise UserError("no CUDA device found; --device cpu works without one")
    xp = import_module("cupy")
    name = xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return Backend(xp, lambda: xp.cuda.get_current_stream().synchronize(), f"{name}, through CuPy {xp.__version__}")


def to_numpy(array: Any) -> Any:
    """Return a NumPy or CuPy array as a NumPy array."""
    return array.get() if hasattr(array, "get") else array
