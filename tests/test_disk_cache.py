"""The disk cache of libraries: what is built anew, what is damaged or shared, and what is built at the same time."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cudakit import compiler, host, kernel_cache
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.launch import in_threads

from .libraries import answer, forget_surroundings, no_compile, text_of
from .processes import python


def test_a_second_build_compiles_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernel_cache.build(text_of(1))
    monkeypatch.setattr(compiler.subprocess, "run", no_compile)
    assert kernel_cache.build(text_of(1)) == first
    assert answer(first) == 1
    assert list(cache.iterdir()) == [first]


def test_another_text_or_other_flags_make_another_entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {kernel_cache.build(text_of(1)), kernel_cache.build(text_of(2))}
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-O1"))
    forget_surroundings()
    entries.add(kernel_cache.build(text_of(1)))
    assert len(entries) == 3


DAMAGES = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "one bit flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "digest only": lambda content: content[-kernel_cache.DIGEST_SIZE :],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_a_miss_and_repaired(cache: Path, damage: str) -> None:
    entry = kernel_cache.build(text_of(3))
    good = entry.read_bytes()
    entry.write_bytes(DAMAGES[damage](good))
    assert kernel_cache.build(text_of(3)) == entry
    content, size = entry.read_bytes(), kernel_cache.DIGEST_SIZE
    assert kernel_cache.hashlib.sha256(content[:-size]).digest() == content[-size:]
    assert answer(entry) == 3


def test_a_folder_that_nothing_may_be_run_from_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = b"what no system loads"
    monkeypatch.setattr(kernel_cache, "compile_library", lambda text, target: target.write_bytes(foreign))
    with pytest.raises(BackendUnavailable, match=rf"cannot load {re.escape(str(cache))}/.*: .*; set CUDAKIT_CACHE_DIR"):
        host.load(text_of(5))


def test_an_entry_of_another_system_is_made_anew(cache: Path) -> None:
    entry = kernel_cache.build(text_of(1))
    foreign = b"what no system loads"
    entry.write_bytes(foreign + kernel_cache.hashlib.sha256(foreign).digest())
    assert host.load(text_of(1)).answer() == 1


def test_entries_may_be_read_by_whoever_shares_the_folder(cache: Path) -> None:
    assert kernel_cache.build(text_of(1)).stat().st_mode & 0o777 == 0o755


def test_a_cache_that_cannot_be_written_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = kernel_cache.build(text_of(1))
    monkeypatch.setattr(kernel_cache, "cache_dir", lambda: tmp_path / "temporary")
    monkeypatch.setattr(compiler.subprocess, "run", no_compile)
    assert kernel_cache.build(text_of(1)) == entry
    assert text_of(1) not in host.missing([text_of(1)])


def test_a_folder_that_is_full_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CompileError, match=rf"cannot write {re.escape(str(cache))}/.*: No space left on device; set"):
        kernel_cache.build(text_of(1))
    assert list(cache.iterdir()) == []


def test_a_relative_folder_stays_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os; from cudakit import host, kernel_cache\n"
        f"first = host.load({text_of(1)!r}).answer(); os.chdir('/'); print(first, host.load({text_of(2)!r}).answer())\n"
        "print(kernel_cache.cache_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDAKIT_CACHE_DIR": "."},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n") == ["1 2", str(tmp_path), ""], done.stderr


def test_without_a_home_there_is_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from cudakit.cli.info import caches, kernel_cache; print(kernel_cache.cache_dir().name, *caches()[0])"
    (line,) = python(code, CUDAKIT_CACHE_DIR="~no-such-user/kernels")
    assert re.match(r"cudakit-\w+ CPU .*; temporary: .*home", line)


def test_what_a_call_waits_for_is_built_at_the_same_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, real = tmp_path / "meeting", shlex.join(compiler.command())
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
    forget_surroundings()
    in_threads(kernel_cache.build, host.missing([text_of(1), text_of(2), text_of(1)]), 3)
    monkeypatch.setattr(compiler.subprocess, "run", no_compile)
    assert [answer(kernel_cache.build(text_of(number))) for number in (1, 2)] == [1, 2]
    assert host.missing([text_of(1), text_of(2)]) == []


def test_an_error_in_one_of_several_sources_is_raised(cache: Path) -> None:
    with pytest.raises(CompileError, match="no such luck"):
        in_threads(kernel_cache.build, [text_of(1), "#error no such luck\n"], 2)


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
        f"import ctypes; from cudakit import kernel_cache; folder = kernel_cache.cache_dir()\n"
        f"print(ctypes.CDLL(str(kernel_cache.build({text_of(4)!r}))).answer(), folder, folder.is_dir())"
    )
    (line,) = python(code, **environment, TMPDIR=temporary)
    number, folder, exists = line.split()
    assert (number, exists) == ("4", "True")
    assert Path(folder).parent == temporary
    assert list(temporary.iterdir()) == []  # gone with the process


def test_a_cache_that_was_removed_is_made_anew(cache: Path) -> None:
    assert answer(kernel_cache.build(text_of(1))) == 1
    shutil.rmtree(cache)
    assert answer(kernel_cache.build(text_of(2))) == 2
