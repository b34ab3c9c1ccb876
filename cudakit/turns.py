"""Turns of processes, and of threads, that want the same file made: one makes it, and the others wait."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_SECONDS = 60.0  # that one waits for another: several times as long as the slowest kernel takes to compile


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Wait until nobody else is making `file`, and keep others waiting meanwhile.

    Nothing but time depends on it. Where there are no locks, or a turn does not come, one goes on without: a file may
    be made twice. The system ends the turns of processes that die.
    """
    from filelock import FileLock  # here, because an import of cudakit need not wait for it

    lock = FileLock(f"{file}.lock", timeout=MOST_SECONDS)
    with suppress(OSError, NotImplementedError):  # a timeout is an OSError, too
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
