"""Who wants a kernel that another process is compiling waits for it; and what killed processes leave."""

import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from cudakit import compiler, kernel_cache, turns
from cudakit.launch import in_threads

from .libraries import answer, text_of

# A compiler that takes its time, and notes each run.
SLOW_COMPILER = """#!/bin/sh
echo run >> {runs}
sleep 0.5
exec {compiler} "$@"
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which the compiler notes each of its runs."""
    file, program = tmp_path / "runs", tmp_path / "c++"
    program.write_text(SLOW_COMPILER.format(runs=shlex.quote(str(file)), compiler=shlex.join(compiler.command())))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(program))
    return file


def test_processes_that_start_together_compile_once(tmp_path: Path, runs: Path) -> None:
    code = f"from cudakit import kernel_cache; print(kernel_cache.build({text_of(6)!r}))"
    variables = os.environ | {"CUDAKIT_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    (made,) = {process.communicate()[0].strip() for process in started}
    assert answer(Path(made)) == 6
    assert runs.read_text().splitlines() == ["run"]
    assert list((tmp_path / "cache").iterdir()) == [Path(made)]


def test_threads_that_want_the_same_compile_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    compile_library = kernel_cache.compile_library
    monkeypatch.setattr(kernel_cache, "compile_library", lambda *a: made.append(a) or compile_library(*a))
    in_threads(kernel_cache.build, [text_of(7)] * 4, 4)
    assert len(made) == 1


@pytest.mark.parametrize("error", [PermissionError, OSError, NotImplementedError])
def test_without_locks_everyone_compiles(cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(self: FileLock) -> None:
        raise error("no locks here")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert answer(kernel_cache.build(text_of(8))) == 8


def test_a_turn_that_does_not_come_is_not_waited_for_without_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_SECONDS", 0.1)
    entry = kernel_cache.build(text_of(9))
    entry.unlink()
    with FileLock(f"{entry}.lock"):
        assert kernel_cache.build(text_of(9)) == entry
    assert answer(entry) == 9


def test_leftovers_are_removed_after_a_day(cache: Path) -> None:
    cache.mkdir(exist_ok=True)
    names = [f"{kernel_cache.UNFINISHED}1.so", "1.so.lock", "2.so"]
    for name, age in [(name, age) for name in names for age in ("old", "new")]:
        file = cache / f"{age}{name}" if name[0].isdigit() else cache / f"{name[:-3]}{age}.so"
        file.touch()
        if age == "old":
            os.utime(file, (time.time() - 2 * kernel_cache.DAY,) * 2)
    before = {file.name for file in cache.iterdir()}
    kernel_cache._remove_leftovers.cache_clear()
    made = kernel_cache.build(text_of(10))
    gone = before - {file.name for file in cache.iterdir()}
    assert gone == {f"{kernel_cache.UNFINISHED}1old.so", "old1.so.lock"}
    assert made.exists()
