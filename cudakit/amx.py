"""Whether this process may use the tile registers of Intel's AMX, which the kernel hands out on request."""

import ctypes
import platform
from functools import cache
from pathlib import Path

FLAGS = {"amx_tile", "amx_bf16"}
# From <asm/prctl.h>, and the number of the x86-64 system call.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def available() -> bool:
    """Ask for tile registers, once for all threads of the process; return whether it has them."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    if not FLAGS.issubset(flags.split()):
        return False
    # Refused by kernels before 5.16, by some sandboxes, and where signals have too small a stack for the registers.
    return bool(ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)
