"""CuPy's streams, which remember what is current the way CuPy's do; here everything is done before a call returns."""

import itertools
import threading
from typing import Any

from . import runtime

_handles = itertools.count(1 << 40)  # of new streams


class _Current(threading.local):
    """What is current in a thread on each device: by `Stream.use` or ``with``, and on the stack of the latter alone."""

    def __init__(self) -> None:
        self.streams = [Stream.null] * runtime.DEVICES
        self.stacks = [[Stream.null] for _ in range(runtime.DEVICES)]
        self.entered: list[int] = []


class Stream:
    """Anybody's stream."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(_handles)
        self.device_id = -1 if null else runtime.getDevice()

    @classmethod
    def from_external(cls, stream: Any) -> "Stream":
        version, handle = stream.__cuda_stream__()
        assert version == 0
        made = cls()
        made.ptr = handle
        return made

    def __enter__(self) -> "Stream":
        device = self._device()
        _current.stacks[device].append(self)
        _current.entered.append(device)
        _current.streams[device] = self
        return self

    def __exit__(self, *_: object) -> None:
        device = _current.entered.pop()
        _current.stacks[device].pop()
        _current.streams[device] = _current.stacks[device][-1]

    def use(self) -> "Stream":
        _current.streams[self._device()] = self
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def synchronize(self) -> None:
        runtime.streamSynchronize(self.ptr)

    def begin_capture(self) -> None:
        assert self.ptr not in (0, runtime.streamLegacy)
        runtime.capturing.add(self.ptr)

    def end_capture(self) -> "Graph":
        runtime.capturing.remove(self.ptr)
        return Graph()

    def _device(self) -> int:
        device = runtime.getDevice()
        if self.device_id not in (-1, device):
            raise RuntimeError("the stream was created on another device")
        return device


class Graph:
    """What was captured, and has been run all the same."""

    def launch(self, stream: Stream) -> None:
        runtime.begin(stream.ptr)


Stream.null = Stream(null=True)
_current = _Current()


def get_current_stream() -> Stream:
    return _current.streams[runtime.getDevice()]
