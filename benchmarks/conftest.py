"""One benchmark for each row of a module's `FAMILY` and each side that is installed."""

from functools import lru_cache

import pytest

from . import peers
from .cases import OURS, Array, Arrays, Family, Prepared, Row, Side, disagreement


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    group = parser.getgroup("cudakit benchmarks")
    group.addoption("--full-size", action="store_true", help="all peers, and the sizes of the tables")
    group.addoption("--cpu-threads", type=int, default=1, help="threads of every side")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread a test over rows and sides."""
    if "side" in metafunc.fixturenames:
        family: Family = metafunc.module.FAMILY
        peers.set_threads(metafunc.config.getoption("--cpu-threads"))
        full = metafunc.config.getoption("--full-size")
        sides = family.sides if full else (OURS, *family.rivals, *family.floors)
        rows = family.rows(not full)
        metafunc.parametrize("row", rows, ids=lambda row: row.name)
        metafunc.parametrize("side", [side for side in sides if peers.present(side)])


@lru_cache(1)  # the sides of a row follow one another
def _expected(row: Row, ours: Side) -> tuple[Arrays, tuple[Array, ...]]:
    arrays = row.make()
    prepared = ours(row, arrays, 1)
    assert prepared is not None
    return arrays, prepared.results(prepared.call())


@pytest.fixture
def prepared(request: pytest.FixtureRequest, row: Row, side: str) -> Prepared:
    """Return a side that is ready to be timed and agrees with cudakit."""
    family: Family = request.module.FAMILY
    arrays, expected = _expected(row, family.sides[OURS])
    made = family.sides[side](row, arrays, request.config.getoption("--cpu-threads"))
    if made is None:
        pytest.skip(f"{peers.title(side)} does not compute {row.name}")
    found = made.results(made.call())
    assert side in family.floors or not disagreement(row, found, expected, made.slack)
    return made
