"""What runs on a GPU, on one that is emulated: its kernels, its plans and what it asks of cuBLAS, but not its speed.

The tests that run on every device run in processes whose CuPy is the one in `emulated`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz import AFFINE_SETTINGS, DEFORM_SETTINGS, SETTINGS
from .processes import start

TESTS = Path(__file__).parent
# Two processes with about as much to do.
PARTS = [
    (
        "deformable",
        "deformable_gradients",
        "deformable_groups",
        "deformable_errors",
        "conv_cuda_plan",
        "depthwise_plan",
        "deformable_double_backward",
    ),
    (
        "affine",
        "sampling",
        "sampling_gradients",
        "sampling_special",
        "deformable_special",
        "errors",
        "frameworks",
        "wide",
        "cuda_calls",
        "double_backward",
        "reproducible",
    ),
]
FEWEST_TESTS = 600
FUZZ, CALLS = TESTS / "fuzz.py", 20

# A kernel that is wrong, on arrays of 64 numbers.
WRONG = """
import cupy, numpy as np
from cudakit import cuda
from cudakit.source import Kernel, flatten, type_constants
text = '''
struct WrongParams { const scalar_t* from; scalar_t* to; };
KERNEL(wrong, WrongParams) { FOR_EACH(i, 64 / LANES) { %s } }
ENTRY(wrong, WrongParams)
'''
constants = type_constants("float32", "float32", False) | {"TILE": 1, "LANES": 4, "VEC": 4}
prelude = "".join(f"#define {name} {value}\\n" for name, value in constants.items())
kernel = cuda.CudaKernel(prelude + flatten("core.cuh") + text, "wrong", constants["LANES"], 0)
x, y = cupy.zeros(64, np.float32), cupy.empty(64, np.float32)
kernel.launch(np.array([x.data.ptr, y.data.ptr], np.uint64).tobytes(), 16, 1, 1, 0)
print(y.get().max())
"""

# Digits of numbers below 2^31, by multiplication; prints how many are wrong.
DIGITS = """
import cupy, numpy as np
from cudakit import cuda
from cudakit.source import flatten, type_constants
from cudakit.structs import inverses
text = '''
struct DigitsParams { const int* numbers; const int* bases; const long long* inverses; int* rest; int* digits; };
KERNEL(digits, DigitsParams) {
    FOR_EACH(i, COUNT / LANES) {
        for (int k = i * LANES; k < (i + 1) * LANES; ++k) {
            p.rest[k] = p.numbers[k];
            p.digits[k] = take_digit(p.rest[k], p.bases[k], p.inverses[k]);
        }
    }
}
ENTRY(digits, DigitsParams)
'''
edges = [2**31 - 1, *(2**k + step for k in range(31) for step in (-1, 0, 1))]
bases = sorted({*edges, *range(1, 40), *np.random.default_rng(0).integers(1, 2**31, 40).tolist()} - {0, 2**31})
pairs = [(min(max(k * base + step, 0), 2**31 - 1), base) for base in bases
         for k in {0, 1, 2, (2**31 - 1) // base // 2, (2**31 - 1) // base} for step in (-1, 0, 1)]
numbers, bases = np.array(pairs, np.int32).T.copy()
constants = type_constants("float32", "float32", False) | {"TILE": 1, "LANES": 1, "VEC": 1, "COUNT": len(pairs)}
prelude = "".join(f"#define {name} {value}\\n" for name, value in constants.items())
kernel = cuda.CudaKernel(prelude + flatten("core.cuh") + text, "digits", 1, 0)
given = [cupy.asarray(x) for x in (numbers, bases, np.array(inverses(*bases.tolist()), np.int64))]
found = [cupy.empty(len(pairs), np.int32) for _ in range(2)]
kernel.launch(np.array([x.data.ptr for x in given + found], np.uint64).tobytes(), len(pairs), 1, 1, 0)
print(sum(int((x.get() != y).sum()) for x, y in zip(found, divmod(numbers, bases))), len(pairs) > 2000)
"""


@pytest.fixture(scope="module")
def emulated() -> dict[str, str]:
    """Return the environment of a Python that has the emulated GPU."""
    if shutil.which("g++") is None or not sys.platform.startswith("linux"):
        pytest.skip("the GPU is emulated by what g++ makes on Linux")
    probe = ["g++", "-ftrivial-auto-var-init=pattern", "-x", "c++", "-c", "-o", os.devnull, "-"]
    if subprocess.run(probe, input="_Float16 x;", text=True, capture_output=True, check=False).returncode:
        pytest.skip("g++ is too old to emulate a GPU")
    return {
        "PYTHONPATH": os.pathsep.join([str(TESTS / "emulated"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CUDAKIT_TEST_FRAMEWORKS": "cupy",
        "UBSAN_OPTIONS": "abort_on_error=1",  # so that Python says which test it was
    }


def test_what_runs_on_a_gpu(emulated: dict[str, str]) -> None:
    options = ("-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-k", "cuda", "--rootdir", TESTS.parent)
    processes = [start(emulated, *options, *(TESTS / f"test_{name}.py" for name in part)) for part in PARTS]
    for process, (printed, errors) in [(process, process.communicate()) for process in processes]:
        assert process.returncode == 0, printed + errors
        assert int(re.findall(r"(\d+) passed", printed)[-1]) >= FEWEST_TESTS, printed


def test_random_calls_have_the_results_of_a_cpu(emulated: dict[str, str], tmp_path: Path) -> None:
    compiler = tmp_path / "g++-quick"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    environment = emulated | {"CXX": str(compiler)}
    made = 0
    for process in [start(environment, FUZZ, CALLS, part, len(PARTS), "cuda") for part in range(len(PARTS))]:
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        made += int(printed)
    assert made == CALLS * len([*SETTINGS, *DEFORM_SETTINGS, *AFFINE_SETTINGS])


def test_the_demo_learns_on_a_gpu(emulated: dict[str, str], tmp_path: Path) -> None:
    for module in ("matplotlib", "PIL", "rich"):
        pytest.importorskip(module)
    size = ("--size", 40, "--steps", 100, "--out", tmp_path / "demo.png")
    process = start(emulated, "-m", "cudakit", "demo", "--device", "cuda", *size)
    printed, errors = process.communicate()
    assert process.returncode == 0, printed + errors
    assert "emulated GPU" in printed


@pytest.mark.parametrize(
    ("body", "report"),
    [
        pytest.param("p.to[i] = p.from[i + 64];", "", id="read beyond the end"),
        pytest.param("p.to[i + 64] = 0;", "", id="write beyond the end"),
        pytest.param(
            "struct alignas(16) Four { float x[4]; } four = *(const Four*)(p.from + i);", "misaligned", id="alignment"
        ),
        pytest.param("p.to[i] = LANE ? lane_sum(1.0f) : lane_sum(2.0f);", "different shuffles", id="divergence"),
        pytest.param("p.to[0] = 1;", "two threads use the same memory", id="two writers"),
        pytest.param("p.to[LANES * i + LANE] = p.to[LANES * i];", "two threads", id="reader and writer"),
        pytest.param("if (i) add_to(p.to, 1.0f); else *p.to = 0;", "two threads", id="adder and writer"),
        pytest.param("if (!LANE) p.to[i] = lane_sum(1.0f);", "has ended", id="lanes that are not there"),
        pytest.param(
            "if (i < 12) p.to[LANES * i + LANE] = __shfl_xor_sync(~0u, 1.0f, 1);",
            "has ended",
            id="lanes of other items",
        ),
        pytest.param(
            "p.to[LANES * i + LANE] = __shfl_xor_sync(1u << LANE, 1.0f, 1);", "not name", id="lanes not named"
        ),
    ],
)
def test_the_emulated_gpu_sees_what_is_wrong(emulated: dict[str, str], body: str, report: str) -> None:
    process = start(emulated, "-c", WRONG % body)
    printed, errors = process.communicate()
    assert process.returncode < 0, printed
    assert report in errors


def test_digits_by_multiplication_are_exact(emulated: dict[str, str]) -> None:
    printed, errors = start(emulated, "-c", DIGITS).communicate()
    assert printed == "0 True\n", errors


@pytest.mark.parametrize(
    ("body", "found"), [("p.to[LANES * i + LANE] = LANE;", "3.0"), ("if (!LANE) p.to[i] = 1;", "nan")]
)
def test_what_was_not_set_is_no_number(emulated: dict[str, str], body: str, found: str) -> None:
    printed, errors = start(emulated, "-c", WRONG % body).communicate()
    assert printed == f"{found}\n", errors
