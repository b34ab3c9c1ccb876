"""The command line, as a user meets it: help, information, the demonstration, and mistakes."""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import cudakit
from cudakit import compiler, cpuinfo
from cudakit.__main__ import COMMANDS, main
from cudakit.cli import info
from cudakit.cli.command import check_writable

ROOT = Path(__file__).resolve().parent.parent
FULL = Path("/dev/full")
HEAVY = ("torch", "jax", "onnxruntime", "openvino", "matplotlib", "rich", "PIL")
ONLY_INFO = f"""
import sys
from cudakit.__main__ import main
before = set(sys.modules)
status = main(["info"])
print(*[name for name in {HEAVY} if name in set(sys.modules) - before], file=sys.stderr)
sys.exit(status)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python from the project's folder."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a mistake prints, having checked that it is one and that nothing else happens."""
    try:
        status = main(arguments)
    except SystemExit as left:  # as argparse leaves
        status = left.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("cudakit")
    return printed.err


@pytest.fixture
def demo_extra() -> None:
    """Skip where the extra is not installed."""
    for module in ("matplotlib", "PIL", "rich"):
        pytest.importorskip(module)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_explains_itself(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "examples:" in text
    assert "exit status: 0 fine, 1 a check failed, 2" in text
    for name in COMMANDS if not command else command:
        assert f"cudakit {name}" in text


def test_runs_as_a_module() -> None:
    done = python("-m", "cudakit", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cudakit {cudakit.__version__}\n", "")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_may_leave() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "cudakit", "info"]
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (141, "")


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_info_imports_no_framework() -> None:
    done = python("-W", "error", "-c", ONLY_INFO)
    assert (done.returncode, done.stderr.split()) == (0, [])
    for word in ("cudakit", "Python", "NumPy", "CUDA", "C++ compiler", "Cache", cudakit.__version__, np.__version__):
        assert word in done.stdout
    for library in info.FRAMEWORKS:
        assert re.search(rf"^  {re.escape(library.name)} .*(yes: |no: |not installed; pip install )", done.stdout, re.M)


def test_info_says_why_a_cache_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("CUDAKIT_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(info.kernel_cache, "cache_dir", lambda: tmp_path)
    assert info.caches()[0][1].endswith(f"; temporary, since {tmp_path / 'file'} cannot be written")


def test_x86_processors_have_family_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x86 = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    monkeypatch.setattr(cpuinfo.Path, "read_text", lambda *_, **__: x86)
    assert cpuinfo.processor_name() == "AMD EPYC (family 25, model 17)"
    monkeypatch.setattr(cpuinfo.Path, "read_text", lambda *_, **__: "model name\t: Neoverse-V2\n")
    assert cpuinfo.processor_name() == "Neoverse-V2"


def test_info_works_without_anything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiler, "commands", lambda: iter(()))
    monkeypatch.setattr(info, "find_spec", lambda _: None)
    monkeypatch.setattr(info, "_installed", lambda _: ("", ""))
    compiler.command.cache_clear()
    try:
        assert main(["info"]) == 0
    finally:
        compiler.command.cache_clear()
    text = capsys.readouterr().out
    for extra in ("cpu", "cuda12", "torch", "jax"):
        assert f"pip install 'cudakit[{extra}]'" in text


@pytest.mark.parametrize("command", ["no-such-compiler --fast", "g++ 'x"])
def test_info_says_that_cxx_is_no_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", command)
    compiler.command.cache_clear()
    try:
        assert main(["info"]) == 0
    finally:
        compiler.command.cache_clear()
    text = capsys.readouterr().out
    assert re.search(rf"^  C\+\+ compiler +\$CXX must be a command, got .*{re.escape(command)}.*: \w", text, re.M)


def test_info_says_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = next(library for library in info.FRAMEWORKS if library.name == "PyTorch")
    monkeypatch.setattr(info, "_installed", lambda _: ("torch", "2.3.1+cpu"))
    assert info.framework(torch, "") == ("2.3.1+cpu", False, "no: too old; pip install 'torch>=2.5'")
    monkeypatch.setattr(info, "_installed", lambda _: ("torch", "2.10.0a1"))
    assert info.framework(torch, "")[1:] == (True, "yes: tensors, with autograd")


def test_info_demands_what_the_package_demands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    demands = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    minima = dict(found.groups() for d in demands if (found := re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", d)))
    checked = 0
    for library in info.FRAMEWORKS:
        for package in {*library.packages} & {*minima}:
            assert library.minimum == minima[package], package
            checked += 1
    assert checked >= 4


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the demonstration once, small, and return what it printed and drew."""
    for module in ("matplotlib", "PIL", "rich"):
        pytest.importorskip(module)
    picture = tmp_path_factory.mktemp("demo") / "picture.png"
    return python("-m", "cudakit", "demo", "--size", "96", "--steps", "120", "--out", str(picture)), picture


def test_demo_agrees_and_registers(demonstration: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, picture = demonstration
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "They agree" in done.stdout
    error = re.search(r"now they are ([\d.]+)\.\n", done.stdout)
    assert error is not None
    assert float(error[1]) < 0.3
    assert f"Pictures: {picture}, {picture.with_stem('picture-offsets')}" in done.stdout
    taps = re.search(r"worst tap was 2\.42 pixels off, now it is\s([\d.]+);", done.stdout)
    assert taps is not None
    assert float(taps[1]) < 0.05
    for name in ("affine_grid", "grid_sample", "grid_sample_backward", "affine_grid_backward"):
        assert re.search(rf"^{name} .* ms", done.stdout, re.M)


@pytest.mark.parametrize("stem", ["picture", "picture-offsets"])
def test_demo_draws_pictures(demonstration: tuple[subprocess.CompletedProcess[str], Path], stem: str) -> None:
    from PIL import Image

    with Image.open(demonstration[1].with_stem(stem)) as picture:
        assert picture.format == "PNG"
        assert 1000 < picture.width < 2000
        assert 400 < picture.height < 1500
        shades = np.asarray(picture.convert("L"))
    assert shades.std() > 30  # not blank


def test_demo_fails_when_it_does_not_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], demo_extra: None
) -> None:
    picture = tmp_path / "picture.png"
    assert main(["demo", "--device", "cpu", "--size", "64", "--steps", "1", "--out", str(picture)]) == 1
    text = capsys.readouterr().out
    assert "Not registered" in text
    assert "Not learnt" in text
    assert picture.stat().st_size > 0


def test_demo_fails_when_it_disagrees_with_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], demo_extra: None
) -> None:
    from cudakit.cli import demo

    monkeypatch.setattr(demo, "TOLERANCE", 1e-12)
    out = str(tmp_path / "picture.png")
    assert main(["demo", "--device", "cpu", "--size", "64", "--steps", "150", "--out", out]) == 1
    text = capsys.readouterr().out
    assert "They disagree" in text
    assert "Registered" in text


def test_demo_takes_any_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str], demo_extra: None) -> None:
    from PIL import Image

    ramp = np.linspace(0, 255, 90 * 160).reshape(90, 160).astype(np.uint8)
    Image.fromarray(ramp).convert("LA").save(tmp_path / "wide [grey].png")
    options = ("--device", "cpu", "--size", "50", "--steps", "2", "--out", str(tmp_path / "out.svg"))
    assert main(["demo", "--image", str(tmp_path / "wide [grey].png"), *options]) == 1  # too few steps
    assert "wide [grey].png, 50 × 32 pixels" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "out.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "helper"),
    [
        (("frobnicate",), "cudakit"),
        (("info", "--device"), "cudakit info"),
        (("demo", "--device", "tpu"), "cudakit demo"),
        (("bench", "--frobnicate"), "cudakit bench"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], helper: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"(see {helper} --help)" in mistake(capsys, *arguments)


@pytest.mark.parametrize(
    "option", [("--size", "31"), ("--size", "big"), ("--size", "1000000"), ("--steps", "0"), ("--steps", "-3")]
)
def test_numbers_out_of_range(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be a whole number from" in mistake(capsys, "demo", *option)


def test_unreadable_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str], demo_extra: None) -> None:
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    out = ("--out", str(tmp_path / "out.png"))
    missing = str(tmp_path / "missing.jpg")
    assert f"cannot read {missing}: No such file" in mistake(capsys, "demo", "--image", missing, *out)
    assert "cannot read" in mistake(capsys, "demo", "--image", str(tmp_path), *out)
    text = str(tmp_path / "text.jpg")
    assert "not a picture that Pillow can read" in mistake(capsys, "demo", "--image", text, *out)


def test_unwritable_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str], demo_extra: None) -> None:
    assert "must end in one of .jpg, .pdf, .png, .svg" in mistake(capsys, "demo", "--out", "picture.txt")
    assert "there is no folder" in mistake(capsys, "demo", "--out", str(tmp_path / "none" / "picture.png"))
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in mistake(capsys, "demo", "--out", str(tmp_path / "folder.png"))


def test_a_link_to_a_picture_that_is_not_there_yet(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to("picture.png")
    check_writable(link, "--out")
    assert (link.is_symlink(), link.exists()) == (True, False)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert "pip install 'cudakit[demo]'" in mistake(capsys, "demo")


def test_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, demo_extra: None
) -> None:
    monkeypatch.setattr(compiler, "commands", lambda: iter(()))
    compiler.command.cache_clear()
    try:
        line = mistake(capsys, "demo", "--device", "cpu", "--out", str(tmp_path / "out.png"))
    finally:
        compiler.command.cache_clear()
    assert "pip install 'cudakit[cpu]'" in line


def test_missing_cuda(tmp_path: Path, demo_extra: None) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cudakit", "demo", "--device", "cuda", "--out", str(tmp_path / "out.png")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert re.search(r"pip install 'cudakit\[cuda12\]'|no CUDA device", done.stderr)


def test_interrupt_leaves_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-m", "cudakit", "info"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "cudakit info: [Errno 28] No space left on device\n")
