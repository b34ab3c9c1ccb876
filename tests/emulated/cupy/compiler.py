"""Kernels compiled for the emulated GPU: `processor.h`, the text that NVRTC would see, and a launch of its kernel."""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cudakit.kernel_cache import cache_dir

from .cuda import runtime

FLAGS = ("-x", "c++", "-std=c++17", "-fPIC", "-shared", "-w")
KERNEL_FLAGS = (
    *("-O0", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-fsanitize=undefined", "-fno-sanitize-recover=all"),  # above all of addresses that vectors may not have
    *("-fsanitize=kernel-address", "--param=asan-instrumentation-with-call-threshold=0"),  # by calls, and nothing else
    *("--param=asan-stack=0", "--param=asan-globals=0"),
    "-ftrivial-auto-var-init=pattern",  # what was not set is not zero by chance
)
PROCESSOR = Path(__file__).with_name("processor")
# Assembly of a GPU, and what does the same here.
INSTRUCTIONS = {
    r'asm\("cvt\.f32\.f16 %0, %1;" : "=f"\((\S+)\) : "h"\((\S+)\)\);': r"\1 = widen_half(\2);",
    r'asm\("cvt\.rn\.f16\.f32 %0, %1;" : "=h"\((\S+)\) : "f"\((\S+)\)\);': r"\1 = narrow_to_half(\2);",
    r'asm volatile\("red\.global\.add\.v4\.f32 [^"]*" ::"l"\(target\)(?:, "f"\(\w\)){4}\s*: "memory"\);': (
        "emulated_four(target, a, b, c, d);"
    ),
}
ENTRY = re.compile(r"^ENTRY\((\w+), (\w+)\)$", re.MULTILINE)

Function = Callable[..., None]


class CompileException(Exception):
    """The compiler refused the text."""


class RawModule:
    """A compiled kernel."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert "--fmad=false" in options
        for instruction, replacement in INSTRUCTIONS.items():
            code, count = re.subn(instruction, replacement, code)
            assert count == 1, f"{instruction} is not what the kernels say any more"
        ((name, params),) = ENTRY.findall(code)
        self._name = name
        header = PROCESSOR.with_suffix(".h").read_text(encoding="utf-8")
        _load_processor()
        self._library = ctypes.PyDLL(str(build(f"{header}{code}LAUNCH({name}, {params})\n", *KERNEL_FLAGS)))

    def get_function(self, name: str) -> Function:
        assert name == self._name
        launch, device = self._library.launch, runtime.getDevice()

        def function(grid: tuple[int], block: tuple[int], arguments: tuple[Any], *, stream: Any) -> None:
            (blocks,), (threads,), (by_value,) = grid, block, arguments
            assert blocks > 0
            assert runtime.getDevice() == device
            runtime.begin(stream.ptr)
            launch(ctypes.c_char_p(by_value.tobytes()), blocks, threads)

        return function


@cache
def _load_processor() -> ctypes.PyDLL:
    """Load what kernels call."""
    text = PROCESSOR.with_suffix(".cpp").read_text(encoding="utf-8")
    return ctypes.PyDLL(str(build(text, "-O2")), ctypes.RTLD_GLOBAL)


def run_forwards(forwards: bool) -> None:
    """Set whether blocks and warps run in order, rather than the last ones first."""
    ctypes.c_bool.in_dll(_load_processor(), "emulated_forwards").value = forwards


def build(text: str, *flags: str) -> Path:
    """Compile a library, unless it is in the cache."""
    digest = hashlib.sha256("\0".join((*FLAGS, *flags, text)).encode()).hexdigest()
    library = cache_dir() / f"emulated-{digest[:40]}.so"
    if library.exists():
        return library
    handle, made = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = ["g++", *FLAGS, *flags, "-o", made, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileException(done.stderr)
    return Path(made).replace(library)
