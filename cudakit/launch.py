"""(kernel, specialisation, device) -> something to call, compiled when a plan first wants it, and kept."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import index
from typing import Any, TypeVar

from cudakit.array import CPU, Device
from cudakit.host import HostKernel, build, missing
from cudakit.source import Kernel, render

# Work per thread below which waking another one costs more than it saves, in inner-loop steps.
SERIAL_WORK = 1 << 15
MOST_THREADS = 1024

T = TypeVar("T")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


_cores = min(MOST_THREADS, cores())
_threads: int | None = None  # what the user set
_deterministic = False


def get_num_threads() -> int:
    """Return how many CPU threads an operator may use.

    Returns
    -------
    int
        What was set, else the cores that this process may run on.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.get_num_threads() >= 1
    True
    """
    return _threads or _cores


def num_threads_of(library: Callable[[], int] | None) -> int:
    """Return how many may be used for arrays of a library: what was set, else as many as it takes itself."""
    if library is None or _threads is not None:
        return _threads or _cores
    return min(library(), _cores)


def set_num_threads(threads: int) -> None:
    """Set how many CPU threads an operator may use.

    Until then they are as many as PyTorch takes (``torch.get_num_threads()``, 1 in a worker of a ``DataLoader``) for
    its tensors, and for other arrays as many as there are cores that this process may run on.

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


def are_deterministic_algorithms_enabled() -> bool:
    """Return whether results must be the same in every run; see `use_deterministic_algorithms`.

    Returns
    -------
    bool
        What was set last; PyTorch's own setting, which counts for its tensors, is not asked.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.are_deterministic_algorithms_enabled()
    False
    """
    return _deterministic


def use_deterministic_algorithms(mode: bool) -> None:
    """Set whether an operator's results must be the same bits in every run on a GPU.

    By default they are not where gradients by an image are added up, in any order. In this mode numbers are first
    rounded to multiples of a power of two of which float64 holds all sums exactly (Demmel and Nguyen, "Fast
    reproducible floating-point summation", 2013). That changes each by less than 1e-9 of the largest that there may be,
    or 1e-18 where they are float64, and takes more time and temporary memory. Matrix products are cuBLAS's, the same in
    every run on one stream. PyTorch's ``torch.use_deterministic_algorithms`` counts, too, for its tensors. On a CPU
    results are always the same with the same number of threads.

    Parameters
    ----------
    mode : bool
        Whether they must.

    Raises
    ------
    TypeError
        If `mode` is no bool.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.use_deterministic_algorithms(True)
    >>> cudakit.are_deterministic_algorithms_enabled()
    True
    >>> cudakit.use_deterministic_algorithms(False)
    """
    global _deterministic
    if not isinstance(mode, bool):
        raise TypeError(f"use_deterministic_algorithms: mode must be a bool, got {mode!r}")
    _deterministic = mode


class Loaded:
    """A kernel for one specialisation and device, compiled together with others of a plan, or when it is first called.

    Threads that want it first at the same time each compile it: no lock is held then, which a fork could leave locked.

    `call` takes (parameters, items, grain, threads, stream).
    """

    def __init__(self, kernel: Kernel, constants: tuple[tuple[str, str | int], ...], device: Device) -> None:
        self._kernel, self._constants, self.device = kernel, dict(constants), device
        self.rounds = "ROUNDED" in self._constants  # what it adds up
        self.call: Callable[[bytes, int, int, int, int], None] = self._first

    @property
    def compiled(self) -> bool:
        """Whether it is compiled already."""
        return self.call != self._first

    @property
    def text(self) -> str:
        """What is compiled."""
        return render(self._kernel, self._constants, host=self.device == CPU)

    def compile(self) -> None:
        """Compile it for its device."""
        name, device = self._kernel.name, self.device
        if device == CPU:
            self.call = HostKernel(self.text, name).launch
        else:
            from cudakit.cuda import CudaKernel

            self.call = CudaKernel(self.text, name, int(self._constants["LANES"]), device[1]).launch

    def _first(self, *arguments: Any) -> None:
        self.compile()
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

    @property
    def shares(self) -> bool:
        """Whether several items add to the same elements, whose last bits depend on their order."""
        return self.grain > 1 and not self.kernel.rounds

    def __init__(self, kernel: Loaded, tail: bytes, items: int, grain: int, work: int, threads: int) -> None:
        self.kernel, self.tail, self.items, self.grain = kernel, tail, items, grain
        self.threads = min(threads, 1 + work // SERIAL_WORK)

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Launch with these pointers, packed, on this stream (which means nothing on a CPU)."""
        self.kernel.call(pointers + self.tail, self.items, self.grain, self.threads, stream)


def compile_together(calls: Iterable[object]) -> None:
    """Compile what the launches among these lack at the same time, rather than one after the other.

    A single kernel is left to its first launch, and so are all of them while Python ends.
    """
    launched = dict.fromkeys(call.kernel for call in calls if isinstance(call, Launch))
    waiting = [kernel for kernel in launched if not kernel.compiled]
    on_host = [kernel.text for kernel in waiting if kernel.device == CPU]
    if on_host:
        in_threads(build, missing(on_host), cores())
    in_threads(Loaded.compile, [kernel for kernel in waiting if kernel.device != CPU], cores())


def in_threads(action: Callable[[T], object], things: Sequence[T], most: int) -> None:
    """Do something with each of several things, up to `most` at a time; the first error is raised.

    With fewer than two nothing is done, nor while Python ends, which starts no thread any more.
    """
    if len(things) < 2 or not threading.main_thread().is_alive():
        return
    from concurrent.futures import ThreadPoolExecutor  # here, because an import of cudakit need not wait for it

    with ThreadPoolExecutor(min(len(things), most)) as threads:
        list(threads.map(action, things))
