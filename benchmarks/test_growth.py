"""The page and the pictures of growth, from a few points in small sizes."""

from pathlib import Path

import pytest

from .cases import OURS
from .growth import AXES, SMALL_BASE, THREADS, WAYS, curves, page
from .growth_picture import draw


def test_page_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.SIDE_SECONDS", 1e-3)
    axes = [axis._replace(values=axis.values[:2]) for axis in (*AXES[3:], THREADS)]
    found = curves(SMALL_BASE, 1, axes)
    assert [curve["way"] for curve in found] == [way for way in WAYS for _ in axes]
    assert all(point["ms"][OURS] > 0 for curve in found for point in curve["points"])
    draw(found[: len(axes)], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    results = {
        "machine": {"cpu": "any", "cores": 1, "python": "3", "compiler": "c++"},
        "date": "today",
        "commit": "0",
        "versions": {},
        "threads": 1,
        "base": SMALL_BASE._asdict(),
        "curves": found,
    }
    assert "## Side of the kernel: forward" in page(results)
