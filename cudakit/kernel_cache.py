"""A disk cache of libraries compiled from kernels.

An entry is the library followed by the SHA-256 of its bytes; whatever does not match is a miss and is compiled anew.
Entries appear by `os.replace`, so that they are right without any lock. Those who want the same one take turns, lest
each compile it.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from cudakit.compiler import compile_library, fingerprint
from cudakit.errors import CompileError
from cudakit.turns import turn

DIGEST_SIZE = hashlib.sha256().digest_size
UNFINISHED = "unfinished-"  # libraries begin their names so until they are entries
DAY = 86400.0  # seconds


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


def contains(text: str) -> bool:
    """Whether there is an entry for that source, intact or not."""
    return any(entry.exists() for entry in _entries(text))


def build(text: str, *, anew: bool = False) -> Path:
    """Return a shared library made from `text`, unless `anew` from the disk cache where it is there."""
    entries = _entries(text)
    found = None if anew else _find(entries)
    if found is None:
        with turn(entries[0]):
            found = (None if anew else _find(entries)) or _make(text, entries[0])
    return found


def _find(entries: list[Path]) -> Path | None:
    """Return the first of these that is there, and intact."""
    return next((entry for entry in entries if _intact(entry)), None)


def _make(text: str, entry: Path) -> Path:
    """Compile an entry, and return it."""
    _remove_leftovers(entry.parent)
    try:
        handle, name = tempfile.mkstemp(suffix=".so", prefix=UNFINISHED, dir=entry.parent)
        os.close(handle)
        made = Path(name)
        try:
            compile_library(text, made)
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


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left in the folder, a day later."""
    for path in (*folder.glob(f"{UNFINISHED}*"), *folder.glob("*.lock")):
        with suppress(OSError):  # another process removes it, too
            if path.stat().st_mtime < time.time() - DAY:
                path.unlink()


def _intact(entry: Path) -> bool:
    try:
        content = entry.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_SIZE]).digest() == content[-DIGEST_SIZE:]
