"""The README's Python blocks run as they stand, and the table of files leaves none out."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from .conftest import require

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def framework(block: str) -> str:
    """Return the framework that a block imports first."""
    return re.findall(r"^import (\w+)", block, re.MULTILINE)[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by PyTorch's forward mode itself
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # by its exporter itself
@pytest.mark.parametrize("block", BLOCKS, ids=[framework(block) for block in BLOCKS])
def test_block_runs(block: str) -> None:
    require(framework(block))
    exec(compile(block, str(README), "exec"), {})


def test_there_are_blocks_for_the_frameworks() -> None:
    assert {framework(block) for block in BLOCKS} >= {"numpy", "torch", "jax", "tensorflow", "paddle"}


def test_the_table_has_every_file() -> None:
    table = (README.parent / "docs/structure.md").read_text(encoding="utf-8")
    named = re.findall(r"[\w*]+\.(?:py|cuh?|h|cpp)\b", table)
    files = [path.name for folder in ("cudakit", "cuda_src") for path in (README.parent / folder).glob("[!.]*.*")]
    missing = [
        name for name in files if name not in ("__init__.py", "py.typed") and not any(fnmatch(name, n) for n in named)
    ]
    assert missing == []
