"""What the system tells of the processor: cores, name, caches, and units that multiply bfloat16 numbers."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux, as is the next
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_LARGEST, USUAL_SECOND_LEVEL = 2**25, 2**20  # bytes, where the system does not tell

AMX = {"amx_tile", "amx_bf16"}
AVX512_BF16 = {"avx512f", "avx512_bf16"}
# From <asm/prctl.h>, and the number of the x86-64 system call.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _first_core() -> list[str]:
    """Return what Linux says of the first core, as lines ``key : value``; nothing elsewhere."""
    try:
        return CPUINFO.read_text(encoding="utf-8").split("\n\n", maxsplit=1)[0].splitlines()
    except OSError:
        return []


def _value(lines: list[str], key: str) -> str:
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def processor_name() -> str:
    """Return the processor's name, on x86 with family and model: virtual machines often give several the same name."""
    lines = _first_core()
    name, family, model = (_value(lines, key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if family else name or platform.processor() or platform.machine()


def native_target() -> str:
    """Return what a compiler's ``-march=native`` may depend on."""
    lines = _first_core()
    if not lines:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part")))


def _has(features: set[str]) -> bool:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return features.issubset(_value(_first_core(), "flags").split())


@cache
def has_amx() -> bool:
    """Ask for the tile registers of Intel's AMX, once for all threads of the process; return whether it has them."""
    # Refused by kernels before 5.16, by some sandboxes, and where signals have too small a stack for the registers.
    return _has(AMX) and ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


@cache
def has_avx512_bf16() -> bool:
    """Return whether there are instructions that add products of bfloat16 numbers to vectors of float32 sums."""
    return _has(AVX512_BF16)


def _cache_values(file: str) -> dict[Path, str]:
    """Return what the files of that name say, by the folder of their cache."""
    found = {}
    for path in CACHES.glob(f"index*/{file}"):
        try:
            found[path.parent] = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
    return found


def _cache_bytes() -> dict[Path, int]:
    sizes = {folder: size.removesuffix("K") for folder, size in _cache_values("size").items()}
    return {folder: int(size) * 2**10 for folder, size in sizes.items() if size.isdecimal()}


@cache
def largest_cache_bytes() -> int:
    """Return the bytes of the largest cache, or a usual size."""
    return max(_cache_bytes().values(), default=USUAL_LARGEST)


@cache
def second_level_cache_bytes() -> int:
    """Return the bytes of the second-level cache, mostly one core's own, or a usual size."""
    sizes = _cache_bytes()
    levels = _cache_values("level")
    second = [sizes[folder] for folder, level in levels.items() if level == "2" and folder in sizes]
    return max(second, default=USUAL_SECOND_LEVEL)
