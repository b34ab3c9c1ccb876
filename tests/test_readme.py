"""The README's Python blocks run as they stand."""

import re
from pathlib import Path

import pytest

from .conftest import require

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def framework(block: str) -> str:
    """Return the framework that a block imports first."""
    return re.findall(r"^import (\w+)", block, re.MULTILINE)[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by PyTorch's forward mode itself
@pytest.mark.parametrize("block", BLOCKS, ids=[framework(block) for block in BLOCKS])
def test_block_runs(block: str) -> None:
    require(framework(block))
    exec(compile(block, str(README), "exec"), {})


def test_there_are_blocks_for_the_frameworks() -> None:
    assert {framework(block) for block in BLOCKS} >= {"numpy", "torch", "jax", "tensorflow", "paddle"}
