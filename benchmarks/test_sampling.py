"""A few rounds of each row of the sampling family: ``pytest benchmarks``, in full with ``--full-size``."""

from typing import Any

from .cases import OURS, Prepared, Row
from .overhead import bare_launch
from .sampling import FAMILY

__all__ = ["FAMILY"]  # which rows and sides there are


def test_speed(benchmark: Any, row: Row, prepared: Prepared) -> None:
    benchmark.group = row.name
    benchmark.pedantic(prepared.call, rounds=5, warmup_rounds=1)


def test_bare_kernel(benchmark: Any) -> None:
    row = FAMILY.tiny.row
    ours = FAMILY.sides[OURS](row, row.make(), 1)
    assert ours is not None
    benchmark.pedantic(bare_launch(ours.call), rounds=5, iterations=100, warmup_rounds=1)
