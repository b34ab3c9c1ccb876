"""Every kernel compiles for every GPU, without one: NVRTC turns the text into machine code and says what that needs.

The tables of registers are printed: ``pytest tests/test_nvrtc.py -rP`` shows them.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from cudakit.op import OPS
from cudakit.source import CUDA_OPTIONS

from .specialisations import CALLS, REPRODUCIBLE, Specialisation, specialisations

if sys.platform == "darwin":
    pytest.skip("there is no NVRTC for macOS", allow_module_level=True)

from cuda.bindings import nvrtc

OLDEST, HOPPER = 75, 90
ARCHITECTURES = [number for number in nvrtc.nvrtcGetSupportedArchs()[1] if number >= OLDEST]
NEWEST = ARCHITECTURES[-1]
VECTOR_BYTES = 16
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")  # which CuPy adds to every compilation

# Bytes of registers that ptxas may spill: one register in float32 with 32-bit indices. Elsewhere it gives up a few by
# itself, to fit more threads on a processor, around divisions of 64-bit indices above all.
ONE_REGISTER, SOME_BYTES = 4, 128


class Built(NamedTuple):
    """What ptxas says of a kernel, and the intermediate code."""

    registers: int
    stack: int  # bytes
    spilled: int  # bytes stored to the stack because registers ran out
    ptx: str


def check(result: nvrtc.nvrtcResult) -> None:
    """Raise if a call of NVRTC failed."""
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(nvrtc.nvrtcGetErrorString(result)[1].decode())


def get(what: str, program: nvrtc.nvrtcProgram) -> str:
    """Return one of the texts that a program has."""
    result, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    check(result)
    text = b" " * size
    check(*getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.decode().rstrip("\0")


@cache
def build(text: str, architecture: int) -> Built:
    """Compile for an architecture, down to machine code, or raise with the log."""
    options = [f"--gpu-architecture=sm_{architecture}", *CUDA_OPTIONS, *CUPY_OPTIONS, "--ptxas-options=-v"]
    result, program = nvrtc.nvrtcCreateProgram(text.encode(), b"cudakit", 0, None, None)
    check(result)
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = get("ProgramLog", program)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(log)
        (registers,) = re.findall(r"Used (\d+) registers", log)
        ((stack, spilled),) = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
        assert "warning" not in log, log
        return Built(int(registers), int(stack), int(spilled), get("PTX", program))
    finally:
        check(*nvrtc.nvrtcDestroyProgram(program))


def check_stack(example: Specialisation, built: Built) -> None:
    """Check that nothing but a few spilled registers is on the stack, above all no array."""
    assert built.stack <= -(-built.spilled // 8) * 8, f"an array is indexed at run time in {example.constants}"
    kind = example.constant("SCALAR"), example.constant("INDEX"), example.constant("ROUNDED")
    usual = kind == ("float", "int", 0)
    assert built.spilled <= (ONE_REGISTER if usual else SOME_BYTES), example.constants


def small_examples(architecture: int) -> Iterator[list[Specialisation]]:
    """Yield, for every kernel and dtype, specialisations that compile fast.

    Hopper and the ends of the range get all types of coordinates and indices, too.
    """
    every = architecture in (OLDEST, HOPPER, NEWEST)
    groups: dict[tuple[str, ...], list[Specialisation]] = {}
    for example in specialisations():
        small = example.constant("NDIM") != 3 and example.constant("MODE") != "CUBIC"
        if small and (every or example.constant("INDEX") == "int"):
            groups.setdefault(example.types if every else example.types[:2], []).append(example)
    yield from groups.values()


def one_for_each(**constants: str | int) -> list[Specialisation]:
    """Return a specialisation with these constants for every kernel, dimension and mode, paddings in turn."""
    found: dict[tuple[str | int, ...], list[Specialisation]] = {}
    for example in specialisations():
        if all(example.constant(name, value) == value for name, value in constants.items()):
            key = (example.kernel.name, example.constant("NDIM"), example.constant("MODE"))
            found.setdefault(key, []).append(example)
    return [examples[5 * i % len(examples)] for i, examples in enumerate(found.values())]


def test_every_operator_is_enumerated() -> None:
    assert set(OPS) == set(CALLS)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
def test_every_kernel_and_dtype_compiles(architecture: int) -> None:
    turn = ARCHITECTURES.index(architecture)
    for i, examples in enumerate(small_examples(architecture)):
        example = examples[(7 * turn + 3 * i) % len(examples)]  # other constants for every architecture
        check_stack(example, build(example.text, architecture))


@pytest.mark.parametrize("architecture", [OLDEST, HOPPER, NEWEST], ids=lambda number: f"sm_{number}")
def test_what_makes_sums_reproducible_compiles(architecture: int) -> None:
    found: dict[tuple[str, ...], list[Specialisation]] = {}
    for example in specialisations(REPRODUCIBLE):
        if example.constant("ROUNDED") or example.kernel.file == "rounding.cu":
            found.setdefault(example.types, []).append(example)
    assert {name for name, *_ in found} == {
        "deform_col2im",
        "deform_double_backward",
        "grid_sample_channels_backward",
        "grid_sample_double_backward",
        "grid_sample_planar_backward",
        "largest_exponent",
        "make_anchors",
    }
    turn = ARCHITECTURES.index(architecture)
    for i, examples in enumerate(found.values()):
        example = examples[(7 * turn + 3 * i) % len(examples)]
        built = build(example.text, architecture)
        check_stack(example, built)
        added = re.search(r"(atom|red)\.global\.add\.f64", built.ptx) is not None
        assert added == bool(example.constant("ROUNDED"))


def test_registers_of_float32() -> None:
    print(f"\nsm_{NEWEST}: kernel, n, mode, padding, registers, bytes spilled, bytes of stack")
    for example in one_for_each(SCALAR="float", COORD="float", INDEX="int"):
        built = build(example.text, NEWEST)
        n, mode, padding = (example.constant(name, "-") for name in ("NDIM", "MODE", "PADDING"))
        numbers = f"{built.registers:5}{built.spilled:5}{built.stack:5}"
        print(f"{example.kernel.name:30}{n:>2} {mode:8}{padding:10}{numbers}")
        check_stack(example, built)


def vectors() -> list[Specialisation]:
    """Return a specialisation that reads whole vectors of channels for every such kernel and pair of types."""
    found: dict[tuple[str, ...], Specialisation] = {}
    for example in specialisations():
        shape = tuple(example.constant(name) for name in ("NDIM", "MODE", "INDEX"))
        whole = VECTOR_BYTES // {"double": 8, "float": 4}.get(example.constant("SCALAR"), 2)
        if int(example.constant("VEC")) == whole and shape == (2, "LINEAR", "int"):
            found.setdefault(example.types, example)
    return list(found.values())


def widths(ptx: str, instruction: str) -> list[int]:
    """Return how many bytes each load ("ld") or store ("st") of global memory moves."""
    found = re.findall(rf"\b{instruction}\.global[.\w]*?(?:\.v(\d))?\.[bfsu](\d+)\s", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in found]


@pytest.mark.parametrize("example", vectors(), ids=lambda example: "-".join(example.types))
def test_channels_move_16_bytes_at_a_time(example: Specialisation) -> None:
    ptx = build(example.text, NEWEST).ptx
    loads, stores = widths(ptx, "ld"), widths(ptx, "st")
    assert max(loads) == VECTOR_BYTES
    assert loads.count(VECTOR_BYTES) >= 4  # the taps
    if not example.kernel.name.endswith("double_backward"):
        steps = re.findall(r"\b(?:ld\.global\.v|fma)", ptx)
        assert "ld.global.v" * 4 in "".join(steps)  # no tap waits for another
    if example.kernel.name in ("grid_sample_channels", "deform_im2col"):
        assert stores.count(VECTOR_BYTES) >= 1
    if example.kernel.name == "grid_sample_channels":
        assert len(loads) - loads.count(VECTOR_BYTES) == 2  # the coordinates


@pytest.mark.parametrize(
    "example",
    [x for x in vectors() if x.kernel.name in ("deform_col2im", "grid_sample_channels_backward")],
    ids=lambda example: "-".join(example.types),
)
@pytest.mark.parametrize(("architecture", "can"), [(80, False), (HOPPER, True)])
def test_four_sums_are_added_at_a_time(example: Specialisation, architecture: int, can: bool) -> None:
    several = "red.global.add.v4.f32" in build(example.text, architecture).ptx
    assert several == (can and example.constant("ACC") == "float")


def test_an_error_is_reported_where_it_stands() -> None:
    example = specialisations()[0]
    text = example.text.replace("#define DEVICE", "undeclared mistake;\n#define DEVICE")
    lines = text.splitlines()
    number = lines.index("undeclared mistake;") - lines.index('#line 1 "cuda_src/cuda_shim.cuh"')
    with pytest.raises(RuntimeError, match=rf"cuda_src/cuda_shim\.cuh\({number}\): error"):
        build(text, OLDEST)
