"""The host's C++ compiler: which one is taken, the disk cache of libraries, and what goes wrong."""

import ctypes
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cudakit import host
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.op import OPS
from cudakit.source import render

from .processes import python
from .specialisations import CALLS, HOST, specialisations

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
    for function in (host._cache_dir, host.compiler, host.fingerprint):
        function.cache_clear()


def text_of(number: int) -> str:
    """Return a small source whose library answers with `number`."""
    return f"#define ANSWER {number}\n{TEXT}"


def answer(library: Path) -> int:
    """Ask a library for its number."""
    value: int = ctypes.CDLL(str(library)).answer()
    return value


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


def test_a_folder_that_nothing_may_be_run_from_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_compile", lambda text, target: target.write_bytes(b"what no system loads"))
    with pytest.raises(BackendUnavailable, match=rf"cannot load {re.escape(str(cache))}/.*: .*; set CUDAKIT_CACHE_DIR"):
        host.load(text_of(5))


def test_what_a_call_waits_for_is_built_at_the_same_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, real = tmp_path / "meeting", shlex.join(host.compiler())
    meeting.mkdir()
    waits = tmp_path / "waits"  # for the compilers of all three: the texts and the pool of threads
    waits.write_text(f'''#!/bin/sh
touch "{meeting}/$$"
for _ in $(seq 300); do
    [ "$(ls "{meeting}" | wc -l)" -ge 3 ] && exec {real} "$@"
    sleep 0.1
done
exit 1
''')
    waits.chmod(0o755)
    monkeypatch.setenv("CXX", str(waits))
    forget()
    host.build_together([text_of(1), text_of(2), text_of(1)], 3)
    monkeypatch.setattr(host.subprocess, "run", no_compile)
    assert [answer(host.build(text_of(number))) for number in (1, 2)] == [1, 2]
    host.build_together([text_of(1), text_of(2)], 3)


def test_an_error_in_one_of_several_sources_is_raised(cache: Path) -> None:
    with pytest.raises(CompileError, match="no such luck"):
        host.build_together([text_of(1), "#error no such luck\n"], 2)


def test_a_first_call_while_python_ends_compiles(tmp_path: Path) -> None:
    call = "print(cudakit.grid_sample(np.ones((1, 1, 2, 2)), np.zeros((1, 1, 1, 2)))[0, 0])"
    code = f"import atexit, cudakit, numpy as np\natexit.register(lambda: {call})"
    assert python(code, CUDAKIT_CACHE_DIR=tmp_path) == ["[[1.]]"]


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


def test_cxx_may_run_the_compiler_through_another_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    script, used = tmp_path / "ccache", tmp_path / "used"
    script.write_text(f'#!/bin/sh\ntouch {used}\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", shlex.join(["ccache", *host.compiler()]))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    forget()
    assert host.compiler()[0] == str(script)
    assert answer(host.build(text_of(6))) == 6
    assert used.exists()


def test_cxx_may_be_the_ziglang_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("CXX", shlex.join([sys.executable, "-m", "ziglang", "c++"]))
    assert host.compiler()[1:] == ("-m", "ziglang", "c++", "-nostdlib++")  # whose own library takes a minute to build
    assert answer(host.build(text_of(7))) == 7


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_cxx_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    expected = list(host.compilers())
    monkeypatch.setenv("CXX", empty)
    assert list(host.compilers()) == expected


@pytest.mark.parametrize("command", ["no-such-compiler", "no-such-compiler --fast", "/no/such/compiler"])
def test_a_cxx_that_is_not_there_is_not_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(host.subprocess, "run", no_compile)
    remedy = f"install '{command.split()[0]}', or unset CXX and {host.REMEDY}"
    message = f"$CXX must be a command, got '{command}': no such command was found; {remedy}"
    for _ in range(2):  # nothing else is taken the second time either
        with pytest.raises(BackendUnavailable, match=f"^{re.escape(message)}$"):
            host.build(text_of(8))


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
        plan.run([0, 0, 0], ("cuda", 0), 0)


def test_a_failed_compile_crosses_processes() -> None:
    error = CompileError("it failed", "int x", "line 1")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source, copy.log) == (str(error), "int x", "line 1")


def test_a_cache_that_was_removed_is_made_anew(cache: Path) -> None:
    assert answer(host.build(text_of(1))) == 1
    shutil.rmtree(cache)
    assert answer(host.build(text_of(2))) == 2


@pytest.mark.parametrize(("command", "error"), [("g++ 'x", BackendUnavailable), ("{}", CompileError)])
def test_a_compiler_that_is_no_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, error: type[Exception]
) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    monkeypatch.setenv("CXX", command.format(text))
    with pytest.raises(error, match=r"CXX|failed"):
        host.build(text_of(3))
