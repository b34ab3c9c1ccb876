"""(kernel, specialisation, device) -> something to call, compiled once per process and device."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from cudakit.array import CPU, Device
from cudakit.host import HostKernel
from cudakit.source import Kernel, render

# Work per thread below which waking another one costs more than it saves, in inner-loop steps.
SERIAL_WORK = 1 << 15

_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


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
        At least 1.

    Raises
    ------
    ValueError
        If `threads` is below 1.

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
    if threads < 1:
        raise ValueError(f"set_num_threads: threads must be at least 1, got {threads}")
    _threads = threads


class Launch(NamedTuple):
    """One kernel launch with everything but its pointers: `tail` is the struct of parameters after them."""

    kernel: "Loaded"
    tail: bytes
    items: int
    grain: int
    work: int

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Launch with these pointers, packed, on this stream (which means nothing on a CPU)."""
        if self.items > 0:
            self.kernel(pointers + self.tail, self.items, self.grain, self.work, stream)


class Loaded:
    """A kernel for one specialisation and device, compiled when it is first called."""

    def __init__(self, kernel: Kernel, constants: tuple[tuple[str, str | int], ...], device: Device) -> None:
        self._kernel, self._constants, self._device = kernel, dict(constants), device
        self._call: Callable[[bytes, int, int, int, int], None] = self._compile

    def __call__(self, params: bytes, items: int, grain: int, work: int, stream: int) -> None:
        """Run `items` work items; `work` says how much they do together, `grain` how many must stay on one thread."""
        self._call(params, items, grain, work, stream)

    def _compile(self, *arguments: Any) -> None:
        kernel, device = self._kernel, self._device
        text = render(kernel, self._constants, host=device == CPU)
        if device == CPU:
            launch = HostKernel(text, kernel.name).launch

            def call(params: bytes, items: int, grain: int, work: int, _: int) -> None:
                launch(params, items, grain, min(_threads, 1 + work // SERIAL_WORK))

            self._call = call
        else:
            from cudakit.cuda import CudaKernel

            self._call = CudaKernel(text, kernel.name, int(self._constants["LANES"]), device[1])
        self._call(*arguments)


load = cache(Loaded)
