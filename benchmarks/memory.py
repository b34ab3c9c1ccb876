"""Memory: what a call needs beyond what it reads and returns, at its peak; and where timed calls find theirs."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .cases import Row, Side

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
ADDR_NO_RANDOMIZE, ASK_PERSONALITY = 0x0040000, 0xFFFFFFFF  # sys/personality.h


def keep_freed() -> None:
    """Let this process keep what it frees, where its C library is glibc.

    Whether a call's results lie on new pages, which the system clears first, else depends on all allocations before.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def same_layout() -> Iterator[None]:
    """Let the processes that start meanwhile have libraries, heap and stack at the same addresses every time.

    Where they lie by chance decides, for one, whether torch's bicubic gradients take 200 or 250 ms. Linux may refuse.
    """
    personality: Any = getattr(ctypes.CDLL(None), "personality", None)
    before = personality(ASK_PERSONALITY) if personality else -1
    if before != -1:
        personality(before | ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        if before != -1:
            personality(before)


def resident(field: str) -> int:
    """Return VmRSS or VmHWM, its peak, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return 1024 * int(lines[field].split()[0])


def peak(side: Side, tiny: Row, row: Row, threads: int) -> int | None:
    """Return the bytes beyond arguments and results at the peak of a side's first call on a row.

    To be run in a process of its own. None where the system does not say, or the side does not know the operator.
    """
    if not RESET.exists():
        return None
    ready = side(tiny, tiny.make(), threads)
    if ready is not None:
        ready.call()  # libraries and kernels are loaded from here on
    arrays = row.make()
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the call finds room that is counted already
    before = resident("VmRSS")
    RESET.write_text(FORGET_PEAK, encoding="ascii")
    ready = side(row, arrays, threads)
    if ready is None:
        return None
    result = ready.call()
    most = resident("VmHWM")
    return max(most - before - sum(array.nbytes for array in ready.results(result)), 0)
