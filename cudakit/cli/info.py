"""``cudakit info``: what is here, what cudakit can use, and how to install the rest.

Versions come from the metadata of installed packages, so that no framework is imported. CuPy alone is, because nothing
else knows the CUDA devices.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cudakit
from cudakit import compiler, kernel_cache
from cudakit.cli import matrix
from cudakit.cpuinfo import has_amx, has_avx512_bf16, processor_name
from cudakit.errors import BackendUnavailable

CUDA_INSTALL = "pip install 'cudakit[cuda12]'  (or 'cudakit[cuda13]')"
LETTERS = {"float16": "h", "bfloat16": "b", "float32": "f", "float64": "d"}
LEGEND = "  h float16, b bfloat16 (NumPy's and the check's is ml_dtypes'), f float32, d float64, - does not work"
PATIENCE = 20  # seconds for a compiler to say its version


class Library(NamedTuple):
    """A framework.

    `packages` are the names that it goes by on PyPI, `install` is what pip installs, `minimum` the oldest release that
    serves, `use` what cudakit takes from it, and `adapter` a module of cudakit that this needs.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    install: str
    minimum: str
    use: str
    adapter: str = ""


CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
TF_PACKAGES = ("tensorflow", "tensorflow-cpu")
PADDLE_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu")
ORT_USE = "OrtValues (the results are arrays of NumPy or CuPy)"
FRAMEWORKS = (
    Library("NumPy", "numpy", ("numpy",), "numpy", "2.1", "arrays on the CPU"),
    Library("CuPy", "cupy", CUPY_PACKAGES, "'cudakit[cuda12]'", "14", "arrays on CUDA devices"),
    Library("PyTorch", "torch", ("torch",), "'cudakit[torch]'", "2.5", "tensors, with autograd", "cudakit.torch"),
    Library("JAX", "jax", ("jax",), "'cudakit[jax]'", "0.8.2", "arrays, with grad, jvp, jit and vmap", "cudakit.jax"),
    # Before these releases the arrays of the next two do not offer DLPack themselves.
    Library("TensorFlow", "tensorflow", TF_PACKAGES, "tensorflow", "2.20", "tensors, with tapes", "cudakit.tensorflow"),
    Library("Paddle", "paddle", PADDLE_PACKAGES, "paddlepaddle", "3.0", "tensors, with autograd", "cudakit.paddle"),
    Library("array-api-strict", "array_api_strict", ("array-api-strict",), "array-api-strict", "2.0", "arrays"),
    Library("ONNX Runtime", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "onnxruntime", "1.26", ORT_USE),
)


class State(NamedTuple):
    """The installed version of a framework ("-" for none), whether cudakit can use it, and what to say of that."""

    version: str
    usable: bool
    text: str


class Cuda(NamedTuple):
    """The CUDA devices as rows to print, and why there are none ("" where there are some)."""

    rows: list[tuple[str, str]]
    problem: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--check",
        action="store_true",
        help="call every operator in every framework and dtype, each framework in a process of its own; a minute, and "
        "longer where kernels are not compiled yet",
    )


def run(args: argparse.Namespace) -> int:
    """Print everything and return the exit status: 1 where a check failed."""
    cuda = cuda_devices()
    _show("Versions", versions())
    _show("Devices", [("CPU", cpu()), ("C++ compiler", cpp_compiler()), *cuda.rows])
    _show("Cache of compiled kernels", caches())
    found = {library: framework(library, cuda.problem) for library in FRAMEWORKS}
    _show("Frameworks", [(library.name, state.version, state.text) for library, state in found.items()])
    usable = {
        library.name: library.module
        for library, state in found.items()
        if state.usable and library.module in matrix.BRIDGES
    }
    table, problems = operators(usable, args.check)
    _show(f"Operators, {'called here' if args.check else 'as declared; --check calls them'}", table)
    print(LEGEND)
    for line in problems:
        print(f"  wrong: {line}")
    return 1 if problems else 0


def operators(usable: Mapping[str, str], check: bool) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the table of operators, frameworks and dtypes, and what is wrong.

    Parameters
    ----------
    usable : mapping
        Name of a framework -> its module.
    check : bool
        Call the operators; otherwise the table says what each framework has.
    """
    cells = {(operator, name): "" for operator in matrix.OPERATORS for name in usable}
    problems = []
    for name, module in usable.items():
        for operator, dtype, problem in _tried(module) if check else _declared(module):
            cells[operator, name] += "-" if problem else LETTERS[dtype]
            if problem:
                problems.append(f"{name}, {operator}, {dtype}: {problem}")
    rows = [(operator, *(cells[operator, name] for name in usable)) for operator in matrix.OPERATORS]
    return [("", *usable), *rows], problems


def _declared(module: str) -> Iterator[tuple[str, str, str]]:
    return ((operator, dtype, "") for operator in matrix.OPERATORS for dtype in matrix.dtypes(module))


def _tried(module: str) -> Iterator[tuple[str, str, str]]:
    """Try a framework in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "cudakit.cli.matrix", module]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        found = [tuple(entry) for entry in json.loads(done.stdout.splitlines()[-1])]
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        found = [(operator, dtype, reason) for operator, dtype, _ in _declared(module)]
    return iter(found)


def _show(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows below a title, in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    print(title)
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def versions() -> list[tuple[str, str]]:
    """Return the versions of cudakit and of what it stands on."""
    return [
        ("cudakit", cudakit.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("CuPy", _installed(CUPY_PACKAGES)[1] or f"not installed; {CUDA_INSTALL}"),
    ]


def _installed(packages: Sequence[str]) -> tuple[str, str]:
    """Return the first of these packages that is installed and its version, or two empty strings."""
    for name in packages:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return "", ""


def cpu() -> str:
    """Return the processor, how many threads cudakit uses of it, and what multiplies bfloat16 numbers for it."""
    threads = cudakit.get_num_threads()
    unit = ", AMX" if has_amx() else ", AVX512_BF16" if has_avx512_bf16() else ""
    return f"{processor_name()}, {threads} thread{'s'[: threads != 1]}{unit}"


def cpp_compiler() -> str:
    """Return the C++ compiler's command and version, or how to get one."""
    try:
        command = compiler.command()
    except BackendUnavailable as error:
        return str(error)
    # The ziglang wheel runs inside this Python, whose path says nothing.
    shown = "the ziglang wheel" if "ziglang" in command else " ".join(command)
    try:
        asked = [*command, "--version"]
        done = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shown} does not run: {_first_line(error)}"
    return f"{shown}: {_first_line(done.stdout)}"


def _first_line(text: object) -> str:
    return next(iter(str(text).strip().splitlines()), "no reason given")


def cuda_devices() -> Cuda:
    """Return the CUDA devices that CuPy sees."""
    if find_spec("cupy") is None:
        return Cuda([("CUDA", f"needs CuPy: {CUDA_INSTALL}")], "no: not installed")
    try:
        count = import_module("cudakit.cuda").device_count()
        runtime = import_module("cupy").cuda.runtime
        rows = [(f"CUDA {index}", _describe(runtime, index)) for index in range(count)]
    except Exception as error:  # a broken CuPy raises whatever it likes
        problem = f"CuPy does not work: {_first_line(error)}"
        return Cuda([("CUDA", problem)], "no: see Devices")
    if not rows:
        return Cuda([("CUDA", "CuPy sees no device; is there a GPU, and its driver?")], "no: it sees no device")
    return Cuda(rows, "")


def _describe(runtime: Any, index: int) -> str:
    facts = runtime.getDeviceProperties(index)
    driver = runtime.driverGetVersion()
    return (
        f"{facts['name'].decode()}, compute capability {facts['major']}.{facts['minor']}, "
        f"{facts['totalGlobalMem'] / 2**30:.0f} GiB, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    )


def caches() -> list[tuple[str, str]]:
    """Return the folders of compiled kernels and how full they are."""
    folder = kernel_cache.cache_dir()
    try:
        chosen = kernel_cache.chosen_cache_dir()
        remark = "" if folder == chosen else f"; temporary, since {chosen} cannot be written"
    except RuntimeError as error:
        remark = f"; temporary: {_first_line(error)}"
    rows = [("CPU", _usage(folder) + remark)]
    if find_spec("cupy") is not None:
        rows.append(("CUDA", _usage(Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser())))
    return rows


def _usage(folder: Path) -> str:
    sizes = list(_sizes(folder))
    return f"{folder}: {len(sizes)} file{'s'[: len(sizes) != 1]}, {sum(sizes) / 1e6:.1f} MB"


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path.stat().st_size
        except OSError:  # another process cleans up
            pass


def framework(library: Library, cuda_problem: str) -> State:
    """Return what is known of a framework without importing it."""
    package, version = _installed(library.packages)
    if not version:
        if find_spec(library.module) is None:
            return State("-", False, f"not installed; pip install {library.install}")
        version = "?"  # built from source, perhaps, or put on the path
    elif _numbers(version) < _numbers(library.minimum):
        return State(version, False, f"no: too old; pip install '{package}>={library.minimum}'")
    if library.adapter and find_spec(library.adapter) is None:
        return State(version, False, "no: this version of cudakit has no adapter for it")
    if library.module == "cupy" and cuda_problem:
        return State(version, False, cuda_problem)
    return State(version, True, f"yes: {library.use}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, to compare."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
