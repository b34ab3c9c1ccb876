"""The examples run, in small, and do what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import require

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spatial_transformer_in_jax() -> None:
    require("jax")
    pytest.importorskip("sklearn")
    assert example("jax_spatial_transformer").main(["--steps", "150", "--size", "10"]) > 0.5


def test_deformable_layers_in_torch() -> None:
    require("torch")
    accuracy = example("torch_deformable").main(["--steps", "60", "--size", "16", "--backend", "aot_eager"])
    assert accuracy > 0.5


def test_undistorted_photograph(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    out = tmp_path / "undistorted.png"
    assert example("undistort_photograph").main(["--size", "200", "--out", str(out)]) < 0.03
    assert out.stat().st_size > 0


def experiment(*words: str, code: int = 0) -> str:
    """Run the experiment as its user does; return what it prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_transformer_or_deformable(tmp_path: Path) -> None:
    require("torch")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    programme, picture = str(EXAMPLES / "transformer_or_deformable"), tmp_path / "picture.png"
    text = experiment(programme, "--quick", "--jobs", "2", "--out", str(tmp_path / "run"), "--picture", str(picture))
    assert picture.stat().st_size > 0
    table = (tmp_path / "run.md").read_text(encoding="utf-8").splitlines()[-6:]
    assert "\n".join(table) in text
    models = ["plain", "transformer", "deformable", "both"]
    assert [line.split()[1] for line in table[2:]] == models

    report = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    trainings = report["trainings"]
    assert [(t["model"], t["warp"]) for t in trainings] == [(m, w) for m in models for w in ("elastic", "pose")]
    assert all(t["loss"]["last"] < t["loss"]["first"] for t in trainings)
    counts = {t["parameters"] for t in trainings}
    assert max(counts) < 1.03 * min(counts)
    for training in trainings:  # only what decides on positions moves a field
        plain = training["model"] == "plain"
        assert (training["fields"]["shift"] == 0) == plain
        assert (training["fields"]["spacing"] == 1) == plain

    alone = f"""
import json, sys
sys.path.insert(0, {programme!r})
from trial import Effort, one_thread, run
one_thread()
print(json.dumps(run("both", "pose", 0, "cpu", Effort(**{report["effort"]}))))
"""
    again = json.loads(experiment("-c", alone))
    assert {**again, "training_s": 0} == {**trainings[-1], "training_s": 0}  # the same seed, the same numbers


def test_transformer_or_deformable_tells_mistakes() -> None:
    require("torch")
    pytest.importorskip("sklearn")
    text = experiment(str(EXAMPLES / "transformer_or_deformable"), "--seeds", "0", code=2)
    assert text.splitlines()[-1].endswith("argument --seeds: must be at least 1, got 0")
