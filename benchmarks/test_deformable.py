"""A few rounds of each row of the deformable family: ``pytest benchmarks``, in full with ``--full-size``."""

from typing import Any

from .cases import Prepared, Row
from .deformable import FAMILY

__all__ = ["FAMILY"]  # which rows and sides there are


def test_speed(benchmark: Any, row: Row, prepared: Prepared) -> None:
    benchmark.group = row.name
    benchmark.pedantic(prepared.call, rounds=5, warmup_rounds=1)
