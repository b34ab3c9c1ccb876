"""Random calls of the host's kernels, compiled with checks of every address, index, overflow and conversion."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .fuzz import AFFINE_SETTINGS, DEFORM_SETTINGS, SETTINGS
from .processes import start

FUZZ = Path(__file__).with_name("fuzz.py")
CALLS, PARTS = 75, 2
LIBRARIES = ("libasan.so", "libubsan.so")

# Its options come after the library's, so that they hold. The compiler itself runs without the sanitizers.
COMPILER = """#!/bin/sh
unset LD_PRELOAD
exec g++ "$@" -O0 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all \\
    -fsanitize=address,undefined,float-cast-overflow
"""

# A function in a library that is wrong for some argument, called with that argument.
WRONG = """
import ctypes, sys
import numpy as np
from cudakit import kernel_cache
text = 'extern "C" __attribute__((visibility("default"))) int wrong(const float* x, long long n) { %s }'
wrong = ctypes.CDLL(str(kernel_cache.build(text))).wrong
wrong.argtypes = (ctypes.c_void_p, ctypes.c_longlong)
x = np.full(1000, 3e9, np.float32)
wrong(x.ctypes.data, 999)
print("right", flush=True)
wrong(x.ctypes.data, %s)
print("overlooked")
"""


@pytest.fixture
def sanitized(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a Python with the sanitizers in it, and with a compiler that puts them into kernels."""
    found = [Path(_print_file_name(name)) for name in LIBRARIES] if shutil.which("g++") else []
    if not found or not all(path.is_absolute() for path in found):
        pytest.skip("there is no g++ with its sanitizers")
    compiler = tmp_path / "g++-sanitized"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    return {
        "CXX": str(compiler),
        "CUDAKIT_CACHE_DIR": str(tmp_path / "cache"),
        "LD_PRELOAD": " ".join(map(str, found)),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _print_file_name(library: str) -> str:
    done = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_random_calls_break_no_rule(sanitized: dict[str, str]) -> None:
    made = 0
    for process in [start(sanitized, FUZZ, CALLS, part, PARTS) for part in range(PARTS)]:
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        made += int(printed)
    assert made == CALLS * len([*SETTINGS, *DEFORM_SETTINGS, *AFFINE_SETTINGS])


@pytest.mark.parametrize(
    ("body", "argument", "report"),
    [
        pytest.param("return x[n] > 0;", "1000", "heap-buffer-overflow", id="read beyond the end"),
        pytest.param("return x[n] > 0;", "-1", "heap-buffer-overflow", id="read before the start"),
        pytest.param("return (int)n + 2147482648;", "1000", "signed integer overflow", id="overflow"),
        pytest.param("return n > 999 ? (int)x[0] : 0;", "1000", "outside the range", id="conversion"),
        pytest.param("return 1 << (n - 999);", "1031", "shift exponent", id="shift"),
    ],
)
def test_the_sanitizers_see_what_is_wrong(sanitized: dict[str, str], body: str, argument: str, report: str) -> None:
    process = start(sanitized, "-c", WRONG % (body, argument))
    printed, errors = process.communicate()
    assert printed == "right\n"
    assert process.returncode != 0
    assert report in errors
