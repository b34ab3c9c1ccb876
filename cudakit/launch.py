"""(kernel, specialisation, device) -> something to call, compiled once per process and device."""

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cudakit.array import CPU, Device
from cudakit.host import HostKernel
from cudakit.source import Kernel, render

if TYPE_CHECKING:
    from cudakit.cuda import CudaKernel

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

    kernel: Any
    tail: bytes
    items: int
    grain: int
    work: int

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Launch with these pointers, packed, on this stream (which means nothing on a CPU)."""
        if self.items > 0:
            self.kernel(pointers + self.tail, self.items, self.grain, self.work, stream)


class _OnHost:
    def __init__(self, kernel: HostKernel) -> None:
        self._launch = kernel.launch

    def __call__(self, params: bytes, items: int, grain: int, work: int, _: int) -> None:
        self._launch(params, items, grain, min(_threads, 1 + work // SERIAL_WORK))


@cache
def load(kernel: Kernel, constants: tuple[tuple[str, str | int], ...], device: Device) -> Any:
    """Return the kernel, compiled for these constants and this device.

    The result is called with (parameters, items, grain, work, stream).
    """
    return _load(kernel, dict(constants), device)


def _load(kernel: Kernel, constants: Mapping[str, str | int], device: Device) -> Any:
    text = render(kernel, constants, host=device == CPU)
    if device == CPU:
        return _OnHost(HostKernel(text, kernel.name))
    from cudakit.cuda import CudaKernel

    loaded: CudaKernel = CudaKernel(text, kernel.name, int(constants["LANES"]), device[1])
    return loaded
