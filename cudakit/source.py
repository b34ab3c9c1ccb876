"""From `cuda_src` to the one text that a compiler sees.

Includes are flattened here, each once and in order, because neither compiler's disk cache would notice an edited header
otherwise. ``#line`` marks keep error messages pointing at the true file and line. The prelude fixes the specialisation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

INCLUDE = re.compile(r'^#include "([^"]+)"$')

# Fields are 8 bytes each, so the C struct and this list cannot disagree on padding; a test compares their offsets.
Fields = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Kernel:
    """One entry point: the file it stands in, its name, its struct of parameters and the struct's fields.

    `fields` are (name, count) pairs in order; the first `pointers` of them are pointers.
    """

    file: str
    name: str
    params: str
    fields: Fields
    pointers: int


@cache
def flatten(file: str) -> str:
    """Return the text of `file` in `cuda_src` with its includes in place."""
    return "\n".join(_lines(file, set()))


def _folder() -> Traversable:
    try:
        return files("cudakit.cuda_src")
    except ModuleNotFoundError:  # a checkout that is not installed, or that hides the installed package
        return Path(__file__).parents[1] / "cuda_src"


def _lines(file: str, seen: set[str]) -> list[str]:
    seen.add(file)
    lines = [f'#line 1 "cuda_src/{file}"']
    text = _folder().joinpath(file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        include = INCLUDE.match(line)
        if include is None:
            lines.append(line)
            continue
        if include[1] not in seen:
            lines += _lines(include[1], seen)
        lines.append(f'#line {number + 1} "cuda_src/{file}"')
    return lines


def render(kernel: Kernel, constants: Mapping[str, str | int], *, host: bool) -> str:
    """Return the whole translation unit of one kernel.

    Parameters
    ----------
    kernel : Kernel
        What to compile.
    constants : mapping
        The prelude: preprocessor names and their values.
    host : bool
        For the host's C++ compiler (with `host_shim.h` in front) or for NVRTC.
    """
    prelude = "\n".join(f"#define {name} {value}" for name, value in constants.items())
    shim = [flatten("host_shim.h")] if host else []
    return "\n".join([prelude, *shim, flatten(kernel.file), f"ENTRY({kernel.name}, {kernel.params})", ""])


# What NVRTC is told, besides what CuPy adds. No contraction but where the text says so, as on the host: the same bits
# on both, but for float32 numbers below the normal ones, which CuPy's -ftz=true makes zeros.
CUDA_OPTIONS = ("--std=c++17", "--fmad=false")

# Storage type of an array -> (C type, arithmetic type).
C_TYPES = {
    "float16": ("half_t", "float"),
    "bfloat16": ("bfloat16_t", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}


def type_constants(scalar: str, coordinate: str, wide: bool, large: bool = False) -> dict[str, str | int]:
    """Return the part of the prelude that names the types and says how results are stored.

    Parameters
    ----------
    scalar, coordinate : str
        Storage dtypes of the data and of the coordinates.
    wide : bool
        64-bit index arithmetic.
    large : bool
        Whether results go past the caches of a CPU.
    """
    c_type, arithmetic = C_TYPES[scalar]
    found: dict[str, str | int] = {
        "SCALAR": c_type,
        "COORD": C_TYPES[coordinate][0],
        "ACC": arithmetic,
        "INDEX": "long long" if wide else "int",
    }
    return found | {"LARGE": 1} if large else found
