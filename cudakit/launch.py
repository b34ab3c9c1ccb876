"""Kernels and matrix products as something to call, compiled or loaded when a plan first wants them, and kept."""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from cudakit.array import CPU, Device
from cudakit.cpuinfo import core_count
from cudakit.host import HostKernel, missing
from cudakit.kernel_cache import build
from cudakit.product import Product
from cudakit.source import Kernel, render

# Work per thread below which waking another one costs more than it saves, in inner-loop steps.
SERIAL_WORK = 1 << 15

T = TypeVar("T")


class LazyKernel:
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


lazy_kernel = cache(LazyKernel)


class Launch:
    """One kernel launch with everything but its pointers.

    Parameters
    ----------
    kernel : LazyKernel
        What to launch.
    scalars : bytes
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

    __slots__ = ("grain", "items", "kernel", "scalars", "threads")

    def __init__(self, kernel: LazyKernel, scalars: bytes, items: int, grain: int, work: int, threads: int) -> None:
        self.kernel, self.scalars, self.items, self.grain = kernel, scalars, items, grain
        self.threads = min(threads, 1 + work // SERIAL_WORK)

    @property
    def adds_in_any_order(self) -> bool:
        """Whether several items add to the same elements, whose last bits depend on the order."""
        return self.grain > 1 and not self.kernel.rounds

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Launch with these pointers, packed, on this stream (which means nothing on a CPU)."""
        self.kernel.call(pointers + self.scalars, self.items, self.grain, self.threads, stream)


class Multiply:
    """A matrix product on one GPU with everything but its pointers: those of a, b and c.

    cuBLAS is loaded when it is first called.
    """

    def __init__(self, product: Product, device: Device) -> None:
        self._product, self._device = product, device
        self._call: Callable[[bytes, int], None] = self._first

    def __call__(self, pointers: bytes, stream: int) -> None:
        """Multiply with these pointers, packed, on this stream."""
        self._call(pointers, stream)

    def _first(self, pointers: bytes, stream: int) -> None:
        from cudakit.cuda import CudaProduct

        self._call = CudaProduct(self._product, self._device[1]).launch
        self._call(pointers, stream)


def compile_together(calls: Iterable[object]) -> None:
    """Compile what the launches among these lack at the same time, rather than one after the other.

    A single kernel is left to its first launch, and so are all of them while Python ends.
    """
    launched = dict.fromkeys(call.kernel for call in calls if isinstance(call, Launch))
    waiting = [kernel for kernel in launched if not kernel.compiled]
    on_host = [kernel.text for kernel in waiting if kernel.device == CPU]
    if on_host:
        in_threads(build, missing(on_host), core_count())
    in_threads(LazyKernel.compile, [kernel for kernel in waiting if kernel.device != CPU], core_count())


def in_threads(action: Callable[[T], object], things: Sequence[T], most: int) -> None:
    """Do something with each of several things, up to `most` at a time; the first error is raised.

    With fewer than two nothing is done, nor while Python ends, which starts no thread any more.
    """
    if len(things) < 2 or not threading.main_thread().is_alive():
        return
    from concurrent.futures import ThreadPoolExecutor  # here, because an import of cudakit need not wait for it

    with ThreadPoolExecutor(min(len(things), most)) as threads:
        list(threads.map(action, things))
