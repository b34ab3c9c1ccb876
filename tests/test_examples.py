"""The examples run, in small, and do what they say."""

import importlib.util
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
