"""Units of the processor that multiply bfloat16 numbers: the tile registers of Intel's AMX, or AVX512_BF16."""

import ctypes
import platform
from functools import cache
from pathlib import Path

TILES = {"amx_tile", "amx_bf16"}
DOTS = {"avx512f", "avx512_bf16"}
# From <asm/prctl.h>, and the number of the x86-64 system call.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def _has(features: set[str]) -> bool:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return features.issubset(flags.split())


@cache
def tiles() -> bool:
    """Ask for tile registers, once for all threads of the process; return whether it has them."""
    # Refused by kernels before 5.16, by some sandboxes, and where signals have too small a stack for the registers.
    return _has(TILES) and ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


@cache
def dots() -> bool:
    """Return whether there are instructions that add products of bfloat16 numbers to vectors of float32 sums."""
    return _has(DOTS)
