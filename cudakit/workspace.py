"""Temporary memory of calls: one block holds all workspaces of a call, and on a CPU the next call gets it again.

An allocator gives large blocks back to the system when they are freed, and the system clears every page of the next
one: where that happens, small convolutions take half as long again.
"""

from typing import Any

import numpy as np

from cudakit.array import CPU, Device, Memory, Temporary, numpy_pointer

ALIGNMENT = 256  # in bytes, of every workspace: what vectors and matrix libraries of either kind of device ask for
KEPT_BYTES = 32 << 20  # a larger block is freed

_kept: list[Any] = []  # at most one; whoever uses it takes it out, so that it has one user at a time


def aligned(size: int) -> int:
    """Return a number of bytes rounded up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def borrow(size: int, device: Device, stream: int, temporary: Temporary | None) -> Memory:
    """Return a block of at least `size` bytes, to be handed to `give_back` once every launch that uses it is made."""
    if device != CPU:
        from cudakit import cuda

        return (temporary or cuda.allocate)(size, device, stream)
    size += ALIGNMENT
    try:
        block = _kept.pop() if size <= KEPT_BYTES else None
    except IndexError:  # none is kept, or another thread has it
        block = None
    if block is None or block.nbytes < size:
        block = None  # freed first: never two at a time
        block = np.empty(size, np.uint8)
    return Memory(aligned(numpy_pointer(block)), block)


def give_back(memory: Memory, device: Device) -> None:
    """Keep the block for the next call, or free it."""
    if device == CPU and not _kept and memory.owner.nbytes <= KEPT_BYTES:
        _kept.append(memory.owner)
