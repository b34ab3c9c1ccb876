"""(kernel, specialisation, device) -> something to call, compiled at its first call, and kept."""

import os
from collections.abc import Callable
from functools import cache
from operator import index
from typing import Any

from cudakit.array import CPU, Device
from cudakit.host import HostKernel
from cudakit.source import Kernel, render

# Work per thread below which waking another one costs more than it saves, in inner-loop steps.
SERIAL_WORK = 1 << 15
MOST_THREADS = 1024


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


_threads = min(MOST_THREADS, cores())


def get_num_threads() -> int:
    """Return how many CPU threads an operator may use.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.get_num_threads() >= 1
    True
    """
    return _threads


def set_num_threads(threads: int) -> None:
    """Set how many CPU threads an operator may use; the default is every core that this process may run on.

    Parameters
    ----------
    threads : int
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `threads` is no int, or out of range.

    Examples
    --------
    >>> import cudakit
    >>> before = cudakit.get_num_threads()
    >>> cudakit.set_num_threads(1)
    >>> cudakit.get_num_threads()
    1
    >>> cudakit.set_num_threads(before)
    """
    global _threads
    try:
        number = index(threads)
    except TypeError:
        raise TypeError(f"set_num_threads: threads must be an int, got {threads!r}") from None
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"set_num_threads: threads must be at least 1 and at most {MOST_THREADS}, got {number}")
    _threads = number


class Loaded:
    """A kernel for one specialisation and device, compiled when it is first called.

    Threads that call it first at the same time each compile it: no lock is held then, which a fork could leave locked.

    `call` takes (parameters, items, grain, threads, stream).
    """

    def __init__(self, kernel: Kernel, constants: tuple[tuple[str, str | int], ...], device: Device) -> None:
        self._kernel, self._constants, self._device = kernel, dict(constants), device
        self.call: Callable[[bytes, int, int, int, int], None] = self._compile

    def _compile(self, *arguments: Any) -> None:
        kernel, device = self._kernel, self._device
        text = render(kernel, self._constants, host=device == CPU)
        if device == CPU:
            self.call = HostKernel(text, kernel.name).launch
        else:
            from cudakit.cuda import CudaKernel

            self.call = CudaKernel(text, kernel.name, int(self._constants["LANES"]), device[1]).launch
        self.call(*arguments)


load = cache(Loaded)


class Launch:
    """One kernel launch with everything but its pointers.

    Parameters
    ----------
    kernel : Loaded
        What to launch.
    tail : bytes
        The struct of parameters after its pointers.
    items : int
        Work items.
    grain : int
        How many items must stay together on a CPU thread, because they add to the same elements.
    work : int
        Inner-loop steps of all items together, which decide how many threads it is worth to wake.
    threads : int
        At most so many CPU threads.
    """

    __slots__ = ("grain", "items", "kernel", "tail", "threads")

    def __init__(self, kernel: Loaded, tail: bytes, items: int, grain: int, work: int, threads: int) -> None:
        self.kernel, self.tail, self.items, self.grain = kernel, tail, items, grain
        self.threads = min(threads, 1 + work // SERIAL_WORK)

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Launch with these pointers, packed, on this stream (which means nothing on a CPU)."""
        self.kernel.call(pointers + self.tail, self.items, self.grain, self.threads, stream)
