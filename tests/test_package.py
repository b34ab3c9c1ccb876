"""What is shipped: wheel and source distribution, the installed sources, and what `import cudakit` brings along."""

import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cudakit

from .conftest import require

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FILTER = "mark.filterwarnings("
SOURCES = {f"cuda_src/{path.name}" for path in (ROOT / "cuda_src").iterdir() if path.is_file()}
BENCHMARKS = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cudakit").rglob("*.py")}

IMPORT_ONLY = """
import sys
before = set(sys.modules)
import cudakit
frameworks = {"torch", "jax", "cupy", "tensorflow", "paddle"}
print(*sorted(frameworks & (set(sys.modules) - before)))
"""

ONE_FRAMEWORK = """
import sys
import torch
import cudakit
cudakit.affine_grid(torch.zeros(1, 2, 3), (1, 1, 2, 2))
print(*sorted({"jax", "cupy", "tensorflow", "paddle", "torch._dynamo"} & set(sys.modules)))
"""

SAMPLE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import cudakit
assert cudakit.__file__.startswith(sys.argv[1]), cudakit.__file__
x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
theta = np.eye(2, 3, dtype=np.float32)[None]
grid = cudakit.affine_grid(theta, x.shape, align_corners=True)
np.testing.assert_allclose(cudakit.grid_sample(x, grid, align_corners=True), x, atol=1e-5)
"""


def run(*command: object, cwd: Path) -> str:
    """Return what `command` prints, run with an empty kernel cache in `cwd`; a failure shows what it wrote."""
    environment = os.environ | {"CUDAKIT_CACHE_DIR": str(cwd / "cache")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a source distribution made from a copy of the project, and a wheel made from that distribution."""
    folder = tmp_path_factory.mktemp("package")
    project = folder / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("benchmarks", "cudakit", "cuda_src", "docs", "examples", "tests"):
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, project)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", project, cwd=folder)
    return folder / "dist"


def test_sdist_holds_the_sources(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    tests = {path.relative_to(ROOT).as_posix() for path in TESTS.rglob("*") if path.suffix in (".py", ".cpp", ".h")}
    assert names >= SOURCES | BENCHMARKS | MODULES | tests
    assert names >= {"cudakit/py.typed", "LICENSE", "README.md", "CHANGELOG.md", "docs/structure.md"}


def test_a_test_module_that_cannot_be_imported_fails(tmp_path: Path) -> None:
    copy = tmp_path / "tests"
    shutil.copytree(TESTS, copy, ignore=lambda _, names: [name for name in names if name.startswith("test_")])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (copy / "test_broken.py").write_text("import no_such_module\n\n\ndef test_nothing() -> None:\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unable to import module" in done.stdout


def test_wheel_holds_the_sources(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    assert names >= {f"cudakit/{name}" for name in SOURCES | BENCHMARKS} | MODULES | {"cudakit/py.typed"}
    folders = {name.split("/", 1)[0] for name in names if ".dist-info/" not in name}
    assert folders == {"cudakit"}


def test_installed_wheel_works_from_another_folder(built: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel = next(built.glob("*.whl"))
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=elsewhere)
    run(sys.executable, "-I", "-c", SAMPLE, target, cwd=elsewhere)


def test_sources_are_found_as_resources() -> None:
    found = {f"cuda_src/{item.name}" for item in importlib.resources.files("cudakit.cuda_src").iterdir()}
    assert SOURCES
    assert found >= SOURCES


def test_import_brings_no_framework_and_no_warning(tmp_path: Path) -> None:
    printed = run(sys.executable, "-I", "-W", "error", "-c", IMPORT_ONLY, cwd=tmp_path)
    assert printed.split() == []


def test_one_framework_brings_no_other(tmp_path: Path) -> None:
    require("torch")
    assert run(sys.executable, "-c", ONE_FRAMEWORK, cwd=tmp_path).split() == []


def test_version_is_the_distributions() -> None:
    version = importlib.metadata.version("cudakit")
    assert getattr(cudakit, "__version__", version) == version


def test_command_is_registered() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="cudakit")
    assert callable(command.load())


def test_public_names_are_documented() -> None:
    assert len(set(cudakit.__all__)) == len(cudakit.__all__)
    undocumented = [name for name in cudakit.__all__ if not (getattr(cudakit, name).__doc__ or "").strip()]
    assert undocumented == []


def test_no_filter_of_warnings_needs_a_framework() -> None:
    """To apply one, pytest imports the module of its category, even for tests that are skipped without it."""
    marks = [
        line for path in TESTS.glob("test_*.py") for line in path.read_text("utf-8").splitlines() if FILTER in line
    ]
    assert len(marks) > 1
    assert [mark for mark in marks if re.search(r'"\w*:[^":]*:\w+\.', mark)] == []
