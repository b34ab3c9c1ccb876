"""The host's C++ compiler: which one is taken, and what goes wrong."""

import os
import pickle
import re
import shlex
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cudakit import compiler, kernel_cache
from cudakit.cpuinfo import native_target
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.op import OPS
from cudakit.source import render

from .libraries import TEXT, answer, forget_surroundings, no_compile, text_of
from .processes import python
from .specialisations import CALLS, HOST, specialisations

# Prints sums over results of both forms of the kernels, and where compiler and libraries are.
SAMPLE = """
import numpy as np
import cudakit
from cudakit import compiler, kernel_cache
rng = np.random.default_rng(3)
for dtype, channels, mode in (("float16", 2, "bilinear"), ("float32", 20, "bicubic")):
    x = rng.normal(size=(2, channels, 6, 7)).astype(dtype)
    grid = rng.uniform(-1.5, 1.5, (2, 5, 4, 2)).astype(dtype)
    y = cudakit.grid_sample(x, grid, mode)
    for array in (y, *cudakit.grid_sample_backward(y, x, grid, mode)):
        print(np.abs(array).sum(dtype=np.float64))
print(compiler.command()[0], kernel_cache.cache_dir(), sep="\\n")
"""


def test_cxx_may_have_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path(compiler.command()[0]).name
    monkeypatch.setenv("CXX", f"{name} -DANSWER=5 '-DUNUSED=a b'")
    forget_surroundings()
    assert compiler.command()[1:] == ("-DANSWER=5", "-DUNUSED=a b")
    assert answer(kernel_cache.build(TEXT)) == 5


def test_cxx_may_run_the_compiler_through_another_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    script, used = tmp_path / "ccache", tmp_path / "used"
    script.write_text(f'#!/bin/sh\ntouch {used}\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", shlex.join(["ccache", *compiler.command()]))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    forget_surroundings()
    assert compiler.command()[0] == str(script)
    assert answer(kernel_cache.build(text_of(6))) == 6
    assert used.exists()


def test_cxx_may_be_the_ziglang_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("CXX", shlex.join([sys.executable, "-m", "ziglang", "c++"]))
    # Its own library takes a minute to build.
    assert compiler.command()[1:] == ("-m", "ziglang", "c++", "-nostdlib++")
    assert answer(kernel_cache.build(text_of(7))) == 7


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_cxx_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    expected = list(compiler.commands())
    monkeypatch.setenv("CXX", empty)
    assert list(compiler.commands()) == expected


@pytest.mark.parametrize("command", ["no-such-compiler", "no-such-compiler --fast", "/no/such/compiler"])
def test_a_cxx_that_is_not_there_is_not_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(compiler.subprocess, "run", no_compile)
    remedy = f"install '{command.split()[0]}', or unset CXX and {compiler.REMEDY}"
    message = f"$CXX must be a command, got '{command}': no such command was found; {remedy}"
    for _ in range(2):  # nothing else is taken the second time either
        with pytest.raises(BackendUnavailable, match=f"^{re.escape(message)}$"):
            kernel_cache.build(text_of(8))


def test_an_error_in_the_source_shows_source_and_log(cache: Path) -> None:
    text = f'#line 7 "cuda_src/wrong.cu"\nint f() {{ return undeclared; }}\n{TEXT}'
    with pytest.raises(CompileError, match="undeclared") as raised:
        kernel_cache.build(text)
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
    forget_surroundings()
    with pytest.raises(CompileError, match=r"compiler.* failed with status 3\nout of licences") as raised:
        kernel_cache.build(TEXT)
    assert (raised.value.source, raised.value.log) == (TEXT, "out of licences\n")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_makes_nothing_has_failed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    forget_surroundings()
    with pytest.raises(CompileError, match=r"true .* failed with status 0"):
        kernel_cache.build(TEXT)
    assert list(cache.iterdir()) == []


def test_without_a_compiler_the_error_names_the_install_command(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'cudakit\[cpu\]'"):
        kernel_cache.build(TEXT)


def test_the_ziglang_wheel_compiles_the_same_numbers(tmp_path: Path) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("the ziglang wheel is not installed")
    if compiler.command()[0] == sys.executable:
        pytest.skip("there is no other compiler to compare with")
    nothing = tmp_path / "bin"
    nothing.mkdir()
    blocked = tmp_path / "home"
    blocked.write_text("a home that cannot be written")
    expected = python(SAMPLE)
    results = python(SAMPLE, PATH=nothing, CXX="", HOME=blocked, CUDAKIT_CACHE_DIR=tmp_path / "cache")
    assert results[-2:] == [sys.executable, str(tmp_path / "cache")]
    np.testing.assert_allclose(np.array(results[:-2], float), np.array(expected[:-2], float), rtol=1e-6)


@pytest.mark.skipif("fma" not in native_target().split(), reason="counts the instructions of x86 processors with FMA")
@pytest.mark.parametrize("kernel", ["deform_conv", "deform_conv_backward"])
def test_every_compiler_multiplies_matrices_in_vectors(kernel: str, tmp_path: Path) -> None:
    example = next(example for example in specialisations(HOST) if example.types == (kernel, "float", "float"))
    text = render(example.kernel, dict(example.constants), host=True)
    environment, assembly = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path)}, tmp_path / "kernel.s"
    for command in compiler.commands():
        arguments = [*command, *compiler.flags(), "-S", "-o", str(assembly), "-"]
        subprocess.run(arguments, input=text, text=True, check=True, env=environment)
        listing = assembly.read_text(errors="replace")
        name = r"^\w*multiply_blockILb\dELi(\d+)ELi(\d+)E\w*:"  # of vectors, and of rows
        products = re.findall(name + r"(.*?)\.cfi_endproc", listing, re.MULTILINE | re.DOTALL)
        assert len(products) >= 3  # whole blocks of rows, a third, two thirds
        for width, rows, product in products:
            lanes = Counter(re.findall(r"vfn?m(?:add|sub)\d+(ps|ss)", product))
            assert (lanes["ss"], lanes["ps"] >= int(width) * int(rows)) == (0, True), (command, width, rows, lanes)


def test_a_gpu_without_cupy_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "cudakit.cuda", raising=False)
    specs, options = next(CALLS["grid_sample"]())
    plan = OPS["grid_sample"].plan(specs, options, ("cuda", 0))
    with pytest.raises(BackendUnavailable, match=r"pip install 'cudakit\[cuda12\]'"):
        plan.run([0, 0, 0], 0)


def test_a_failed_compile_crosses_processes() -> None:
    error = CompileError("it failed", "int x", "line 1")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source, copy.log) == (str(error), "int x", "line 1")


@pytest.mark.parametrize(("command", "error"), [("g++ 'x", BackendUnavailable), ("{}", CompileError)])
def test_a_compiler_that_is_no_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, error: type[Exception]
) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    monkeypatch.setenv("CXX", command.format(text))
    with pytest.raises(error, match=r"CXX|failed"):
        kernel_cache.build(text_of(3))
