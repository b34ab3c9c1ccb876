"""The text that compilers see: includes in place, marks that point at the true lines, parameters laid out alike."""

import ctypes
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from cudakit import kernel_cache, source
from cudakit.errors import CompileError
from cudakit.source import Kernel, flatten, render
from cudakit.structs import pack_scalars

from .specialisations import CUDA, HOST, REPRODUCIBLE, Specialisation, specialisations

SOURCES = {Path(str(item)).name: item for item in files("cudakit.cuda_src").iterdir() if item.is_file()}
TEXTS = {name: item.read_text(encoding="utf-8") for name, item in SOURCES.items() if not name.endswith(".py")}
MARK = re.compile(r'#line (\d+) "cuda_src/([^"]+)"')

# One for each kernel, compiled or not.
TARGETS = (REPRODUCIBLE, HOST, CUDA)  # the last one's counts
EXAMPLES = {example.kernel.name: example for target in TARGETS for example in specialisations(target)}
KERNELS = [pytest.param(example, id=name) for name, example in EXAMPLES.items()]
SAMPLE = EXAMPLES["grid_sample_planar"]


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy of `cuda_src` that the library reads instead."""
    folder = tmp_path / "cuda_src"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(source, "files", lambda package: folder)
    flatten.cache_clear()
    yield folder
    flatten.cache_clear()


def append(folder: Path, name: str, line: str) -> int:
    """Append a line to a file of the copy and return its number."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    flatten.cache_clear()
    return len(TEXTS[name].splitlines()) + 1


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_is_marked_truly(name: str) -> None:
    file, number = "", 0
    for line in flatten(name).splitlines():
        if mark := MARK.fullmatch(line):
            file, number = mark[2], int(mark[1])
        else:
            assert line == TEXTS[file].splitlines()[number - 1]
            number += 1


@pytest.mark.parametrize("name", TEXTS)
def test_every_include_comes_once(name: str) -> None:
    text = flatten(name)
    assert '#include "' not in text
    starts = [mark[2] for mark in MARK.finditer(text) if mark[1] == "1"]
    assert len(starts) == len(set(starts))
    assert set(starts) == reachable(name)


def reachable(name: str) -> set[str]:
    """Return a file and everything that it includes, by another road than the library's."""
    included = re.findall(r'^#include "(.+)"', TEXTS[name], flags=re.MULTILINE)
    return {name}.union(*map(reachable, included))


def test_a_file_that_is_included_twice_stands_there_once(edited: Path) -> None:
    (edited / "twice.cu").write_text('#include "core.cuh"\nint first;\n#include "core.cuh"\nint second;\n')
    lines = flatten("twice.cu").splitlines()
    assert lines.count('#line 1 "cuda_src/core.cuh"') == 1
    assert lines[-4:] == [
        '#line 2 "cuda_src/twice.cu"',
        "int first;",
        '#line 4 "cuda_src/twice.cu"',
        "int second;",
    ]


@pytest.mark.parametrize(
    "name", ["core.cuh", "interpolate.cuh", "samples.cuh", "grid_sample.cuh", "grid_sample.cu", "host_shim.h"]
)
def test_an_error_is_reported_where_it_stands(edited: Path, name: str) -> None:
    number = append(edited, name, "undeclared mistake;")
    text = render(SAMPLE.kernel, dict(SAMPLE.constants), host=True)
    with pytest.raises(CompileError) as raised:
        kernel_cache.build(text)
    assert f"cuda_src/{name}:{number}:" in raised.value.log
    assert raised.value.source == text


def test_editing_a_header_makes_another_library(edited: Path) -> None:
    example = EXAMPLES["copy"]
    before = render(example.kernel, dict(example.constants), host=True)
    append(edited, "core.cuh", "// another comment")
    after = render(example.kernel, dict(example.constants), host=True)
    assert before != after
    assert kernel_cache.build(before) != kernel_cache.build(after)


def test_the_prelude_comes_first() -> None:
    text = render(SAMPLE.kernel, {"NDIM": 2, "MODE": "LINEAR"}, host=False)
    assert text.startswith("#define NDIM 2\n#define MODE LINEAR\n#line 1 ")
    assert text.endswith("\nENTRY(grid_sample_planar, GridSampleParams)\n")
    assert '"cuda_src/host_shim.h"' not in text


def layout(kernel: Kernel, constants: dict[str, str | int]) -> list[int]:
    """Return what a C++ compiler makes of the struct: its size, then offset and size of each field."""
    numbers = [f"sizeof({kernel.params})"]
    for name, _ in kernel.fields:
        numbers += [f"__builtin_offsetof({kernel.params}, {name})", f"sizeof((({kernel.params}*)0)->{name})"]
    start = render(kernel, constants, host=True).removesuffix(f"ENTRY({kernel.name}, {kernel.params})\n")
    probe = f'extern "C" __attribute__((visibility("default"))) const long long layout[] = {{{", ".join(numbers)}}};\n'
    library = ctypes.CDLL(str(kernel_cache.build(start + probe)))
    return list((ctypes.c_longlong * len(numbers)).in_dll(library, "layout"))


@pytest.mark.parametrize("example", KERNELS)
def test_both_sides_lay_out_the_parameters_alike(example: Specialisation) -> None:
    kernel = example.kernel
    size, *fields = layout(kernel, dict(example.constants))
    expected, offset = [], 0
    for _, count in kernel.fields:
        expected += [offset, 8 * count]
        offset += 8 * count
    assert fields == expected
    assert size == offset
    assert all(count == 1 for _, count in kernel.fields[: kernel.pointers])
    values = [0] * (len(kernel.fields) - kernel.pointers)
    assert 8 * kernel.pointers + len(pack_scalars(kernel, *values)) == size


def test_fields_are_packed_in_order() -> None:
    kernel = Kernel("none.cu", "none", "None", (("a", 1), ("b", 1), ("c", 3), ("d", 2)), pointers=1)
    numbers = [int.from_bytes(part, "little", signed=True) for part in split(pack_scalars(kernel, -5, (6, 7), (8, 9)))]
    assert numbers == [-5, 6, 7, 0, 8, 9]
    with pytest.raises(ValueError, match="argument"):
        pack_scalars(kernel, 1, 2)


def split(packed: bytes) -> list[bytes]:
    """Cut a struct into its fields of 8 bytes."""
    return [packed[start : start + 8] for start in range(0, len(packed), 8)]


def test_python_and_the_sources_name_the_same_kernels() -> None:
    declared = {
        (file, name, params)
        for file, text in TEXTS.items()
        for name, params in re.findall(r"^KERNEL\((\w+), (\w+)\)", text, flags=re.MULTILINE)
    }
    assert declared == {(example.kernel.file, name, example.kernel.params) for name, example in EXAMPLES.items()}
