"""The host's C++ compiler: which one is taken, the disk cache of libraries, and what goes wrong."""

import ctypes
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import host
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.source import render

from .specialisations import CALLS, HOST, operators, specialisations

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0

# Calls by a caller who is bound to one core, before there are workers and after, and to all of them.
BOUND = """
import os
import numpy as np
import cudakit
rng = np.random.default_rng(4)
x = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
grid = rng.uniform(-1, 1, (2, 64, 64, 2)).astype(np.float32)
cudakit.set_num_threads(1)
expected = cudakit.grid_sample(x, grid)
cudakit.set_num_threads(4)
every = os.sched_getaffinity(0)
masks, same = [{min(every)}, every, {max(every)}], []
for mask in masks:
    os.sched_setaffinity(0, mask)
    same.append((cudakit.grid_sample(x, grid) == expected).all())
print(*same)
print(len(os.sched_getaffinity(0)))
"""

# How many of the caller's cores the worker that comes for its call may not use.
AWAY = """
import os
import numpy as np
import cudakit
x, grid = np.ones((2, 3, 64, 64), np.float32), np.zeros((2, 70, 70, 2), np.float32)
cudakit.set_num_threads(2)
before = set(os.listdir("/proc/self/task"))
cudakit.grid_sample(x, grid)
(worker,) = set(os.listdir("/proc/self/task")) - before
print(len(os.sched_getaffinity(0) - os.sched_getaffinity(int(worker))))
"""

TEXT = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'

# Prints sums over results of both forms of the kernels, and where compiler and libraries are.
SAMPLE = """
import numpy as np
import cudakit
from cudakit import host
rng = np.random.default_rng(3)
for dtype, channels, mode in (("float16", 2, "bilinear"), ("float32", 20, "bicubic")):
    x = rng.normal(size=(2, channels, 6, 7)).astype(dtype)
    grid = rng.uniform(-1.5, 1.5, (2, 5, 4, 2)).astype(dtype)
    y = cudakit.grid_sample(x, grid, mode)
    for array in (y, *cudakit.grid_sample_backward(y, x, grid, mode)):
        print(np.abs(array).sum(dtype=np.float64))
print(host.compiler()[0], host.cache_dir(), sep="\\n")
"""

# Calls on several threads before a fork, and again in the child, which inherits none of them.
FORK = """
import multiprocessing, os, sys
import numpy as np
import cudakit
cudakit.set_num_threads(4)
rng = np.random.default_rng(4)
x = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
grid = rng.uniform(-1, 1, (2, 64, 64, 2)).astype(np.float32)
expected = cudakit.grid_sample(x, grid)
def right(_=None):
    return all((cudakit.grid_sample(x, grid) == expected).all() for _ in range(20))
child = os.fork()
if child == 0:
    grandchild = os.fork()
    fine = right() and (grandchild == 0 or os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0)
    os._exit(not fine)
print(right(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(right, range(4)))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty cache folder; what the module remembers about its surroundings is forgotten before and after."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CUDAKIT_CACHE_DIR", str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    """Forget compiler and cache folder, for another environment."""
    for function in (host.cache_dir, host.compiler, host.fingerprint):
        function.cache_clear()


def text_of(number: int) -> str:
    """Return a small source whose library answers with `number`."""
    return f"#define ANSWER {number}\n{TEXT}"


def answer(library: Path) -> int:
    """Ask a library for its number."""
    value: int = ctypes.CDLL(str(library)).answer()
    return value


def python(code: str, **environment: str | Path) -> list[str]:
    """Run Python code in a process of its own, in this environment but for some variables; return what it prints."""
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def no_compile(*_: Any, **__: Any) -> Any:
    """Stand in for `subprocess.run` where nothing may be compiled."""
    raise AssertionError("a compiler was run")


# ----------------------------------------------------------------------------------------------------------------------
# The disk cache


def test_a_second_build_compiles_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = host.build(text_of(1))
    monkeypatch.setattr(host.subprocess, "run", no_compile)
    assert host.build(text_of(1)) == first
    assert answer(first) == 1
    assert list(cache.iterdir()) == [first]


def test_another_text_or_other_flags_make_another_entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {host.build(text_of(1)), host.build(text_of(2))}
    monkeypatch.setattr(host, "FLAGS", (*host.FLAGS, "-O1"))
    forget()
    entries.add(host.build(text_of(1)))
    assert len(entries) == 3


DAMAGES = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "one bit flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "digest only": lambda content: content[-host.DIGEST_SIZE :],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_a_miss_and_repaired(cache: Path, damage: str) -> None:
    entry = host.build(text_of(3))
    good = entry.read_bytes()
    entry.write_bytes(DAMAGES[damage](good))
    assert host.build(text_of(3)) == entry
    content = entry.read_bytes()
    assert host.hashlib.sha256(content[: -host.DIGEST_SIZE]).digest() == content[-host.DIGEST_SIZE :]
    assert answer(entry) == 3


def test_processes_that_start_together_share_an_empty_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    variables = os.environ | {"CUDAKIT_CACHE_DIR": str(cache)}
    code = "import numpy as np, cudakit; print(cudakit.affine_grid(np.ones((1, 2, 3)), (1, 1, 2, 2)).sum())"
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.communicate()[0], process.returncode) for process in started] == [("8.0\n", 0)] * 3
    assert {entry.suffix for entry in cache.iterdir()} == {".so"}
    assert len(list(cache.iterdir())) == 2  # the kernel and the thread pool, and nothing half done


@pytest.mark.parametrize("variable", ["CUDAKIT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_an_unwritable_cache_is_replaced_by_a_temporary_one(tmp_path: Path, variable: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    environment = dict.fromkeys(("CUDAKIT_CACHE_DIR", "XDG_CACHE_HOME"), "") | {variable: str(blocked)}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        f"import ctypes; from cudakit import host; folder = host.cache_dir()\n"
        f"print(ctypes.CDLL(str(host.build({text_of(4)!r}))).answer(), folder, folder.is_dir())"
    )
    (line,) = python(code, **environment, TMPDIR=temporary)
    number, folder, exists = line.split()
    assert (number, exists) == ("4", "True")
    assert Path(folder).parent == temporary
    assert list(temporary.iterdir()) == []  # gone with the process


# ----------------------------------------------------------------------------------------------------------------------
# The compiler


def test_cxx_may_have_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path(host.compiler()[0]).name
    monkeypatch.setenv("CXX", f"{name} -DANSWER=5 '-DUNUSED=a b'")
    forget()
    assert host.compiler()[1:] == ("-DANSWER=5", "-DUNUSED=a b")
    assert answer(host.build(TEXT)) == 5


def test_a_compiler_that_is_not_there_is_passed_over(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --fast")
    assert answer(host.build(text_of(6))) == 6


def test_an_error_in_the_source_shows_source_and_log(cache: Path) -> None:
    text = f'#line 7 "cuda_src/wrong.cu"\nint f() {{ return undeclared; }}\n{TEXT}'
    with pytest.raises(CompileError, match="undeclared") as raised:
        host.build(text)
    assert raised.value.source == text
    assert "cuda_src/wrong.cu:7:" in raised.value.log
    assert list(cache.iterdir()) == []


def test_a_compiler_that_fails_shows_what_it_printed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho out of licences >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    forget()
    with pytest.raises(CompileError, match=r"compiler.* failed\nout of licences") as raised:
        host.build(TEXT)
    assert (raised.value.source, raised.value.log) == (TEXT, "out of licences\n")
    assert list(cache.iterdir()) == []


def test_without_a_compiler_the_error_names_the_install_command(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(host, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'cudakit\[cpu\]'"):
        host.build(TEXT)


def test_the_ziglang_wheel_compiles_the_same_numbers(tmp_path: Path) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("the ziglang wheel is not installed")
    if host.compiler()[0] == sys.executable:
        pytest.skip("there is no other compiler to compare with")
    nothing = tmp_path / "bin"
    nothing.mkdir()
    blocked = tmp_path / "home"
    blocked.write_text("a home that cannot be written")
    expected = python(SAMPLE)
    results = python(SAMPLE, PATH=nothing, CXX="", HOME=blocked, CUDAKIT_CACHE_DIR=tmp_path / "cache")
    assert results[-2:] == [sys.executable, str(tmp_path / "cache")]
    np.testing.assert_allclose(np.array(results[:-2], float), np.array(expected[:-2], float), rtol=1e-6)


@pytest.mark.skipif("fma" not in host._processor().split(), reason="counts the instructions of x86 processors with FMA")
@pytest.mark.parametrize("kernel", ["deform_conv", "deform_conv_backward"])
def test_every_compiler_multiplies_matrices_in_vectors(kernel: str, tmp_path: Path) -> None:
    example = next(example for example in specialisations(HOST) if example.types == (kernel, "float", "float"))
    text = render(example.kernel, dict(example.constants), host=True)
    environment, assembly = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path)}, tmp_path / "kernel.s"
    for command in host.compilers():
        arguments = [*command, *host.flags(), "-S", "-o", str(assembly), "-"]
        subprocess.run(arguments, input=text, text=True, check=True, env=environment)
        listing = assembly.read_text(errors="replace")
        products = re.findall(r"^\w*multiply_block\w*:(.*?)\.cfi_endproc", listing, re.MULTILINE | re.DOTALL)
        assert products
        for product in products:
            lanes = Counter(re.findall(r"vfn?m(?:add|sub)\d+(ps|ss)", product))
            assert (lanes["ss"], lanes["ps"] >= 12) == (0, True), (command, lanes)


def test_a_gpu_without_cupy_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "cudakit.cuda", raising=False)
    specs, options = next(CALLS["grid_sample"]())
    plan = operators()["grid_sample"].plan(specs, options, ("cuda", 0))
    with pytest.raises(BackendUnavailable, match=r"pip install 'cudakit\[cuda12\]'"):
        plan.run([0, 0, 0], ("cuda", 0), 0)


# ----------------------------------------------------------------------------------------------------------------------
# Threads


@pytest.fixture
def problem() -> Iterator[tuple[Any, Any]]:
    """Image and grid that are worth several threads; their number is put back after."""
    before = cudakit.get_num_threads()
    rng = np.random.default_rng(5)
    yield rng.normal(size=(2, 3, 64, 64)).astype(np.float32), rng.uniform(-1, 1, (2, 70, 70, 2)).astype(np.float32)
    cudakit.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("channels", [3, 32])
def test_the_number_of_threads_changes_no_bit(problem: tuple[Any, Any], channels: int, threads: int) -> None:
    x, grid = np.resize(problem[0], (2, channels, 64, 64)), problem[1]
    results = []
    for number in (1, threads):
        cudakit.set_num_threads(number)
        results.append(cudakit.grid_sample(x, grid))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("threads", [1, 4])
def test_gradients_come_out_alike_on_every_run(problem: tuple[Any, Any], threads: int) -> None:
    x, grid = problem
    cudakit.set_num_threads(threads)
    y = cudakit.grid_sample(x, grid)
    first = cudakit.grid_sample_backward(y, x, grid)
    for _ in range(5):
        np.testing.assert_array_equal(cudakit.grid_sample_backward(y, x, grid).input, first.input)
        np.testing.assert_array_equal(cudakit.grid_sample_backward(y, x, grid).grid, first.grid)


def test_several_python_threads_call_at_once(problem: tuple[Any, Any]) -> None:
    cudakit.set_num_threads(3)
    x, grid = problem
    grids = [grid * scale for scale in (0.25, 0.5, 0.75, 1.0)]
    expected = [cudakit.grid_sample(x, each) for each in grids]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: cudakit.grid_sample(x, grids[i % 4]), range(200)))
    assert all((result == expected[i % 4]).all() for i, result in enumerate(results))


@pytest.mark.skipif(CORES == 0, reason="needs Linux")
def test_a_caller_may_be_bound_to_cores_before_and_after() -> None:
    assert python(BOUND) == ["True True True", "1"]


@pytest.mark.skipif(CORES < 2, reason="needs Linux and two cores")
def test_a_worker_keeps_away_from_the_callers_core() -> None:
    assert python(AWAY) == ["1"]


def test_a_forked_child_may_go_on_calling() -> None:
    assert python(FORK) == ["True 0", "True True True True"]
