"""The processor's caches, as far as the system tells of them."""

from functools import cache
from pathlib import Path

FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")  # of Linux
USUAL_BYTES, USUAL_SECOND_BYTES = 2**25, 2**20


def _read(pattern: str) -> dict[Path, str]:
    """Return what the files of that name say, by the folder of their cache."""
    found = {}
    for path in FOLDER.glob(pattern):
        try:
            found[path.parent] = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
    return found


def _sizes() -> dict[Path, int]:
    sizes = {folder: size.removesuffix("K") for folder, size in _read("index*/size").items()}
    return {folder: int(size) * 2**10 for folder, size in sizes.items() if size.isdecimal()}


@cache
def largest_bytes() -> int:
    """Return the size of the largest cache, or a usual one where the system does not tell."""
    return max(_sizes().values(), default=USUAL_BYTES)


@cache
def second_bytes() -> int:
    """Return the size of the second level, mostly one core's own, or a usual one where the system does not tell."""
    sizes = _sizes()
    second = [sizes[folder] for folder, level in _read("index*/level").items() if level == "2" and folder in sizes]
    return max(second, default=USUAL_SECOND_BYTES)
