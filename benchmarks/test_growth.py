"""Growth, from a few points in small sizes."""

from pathlib import Path

import pytest

from . import growth, measure
from .cases import OURS
from .growth import AXES, SMALL_BASE, THREADS, WAYS, curves, notes, tables
from .growth_picture import draw_growth


def test_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "EFFORT", growth.EFFORT._replace(seconds=1e-3))
    axes = [axis._replace(values=axis.values[:2]) for axis in (*AXES[3:], THREADS)]
    found = curves(SMALL_BASE, 1, ("torch_composite", "openvino"), axes, measure.CPU)
    assert [curve["way"] for curve in found] == [way for way in WAYS for _ in axes]
    assert all(point["ms"][OURS] > 0 for curve in found for point in curve["points"])
    draw_growth(found[: len(axes)], "the rest stays").savefig(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    results = {"where": "1 thread", "base": SMALL_BASE._asdict(), "curves": found}
    headings = [heading for heading, _, _ in tables(results)]
    assert "Side of the kernel: forward" in headings
    assert "batch 1, 8 channels" in notes(results)[0]
