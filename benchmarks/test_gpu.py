"""The GPU's half of the benchmarks, on a CPU: all of it but the clock."""

import json
from functools import partial
from pathlib import Path
from time import perf_counter

import pytest

from . import gpu, growth, measure, parts, picture, record, report
from .cases import OURS, Family, Row
from .command import DTYPES
from .families import FAMILIES
from .peers import PEERS
from .tensors import copies_needed, exact, tensors

torch = pytest.importorskip("torch")
CHOICE = record.Choice(
    families=["deformable", "growth"],
    device="cuda",
    dtypes=DTYPES,
    peers=tuple(PEERS),
    threads=[1],
    rows="n2c16_8_v2_fwd(_bfloat16)?$",
    small=True,
    extras=False,
)


class Event:
    """Stands in for a CUDA event."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu, "BURST_SECONDS", 1e-3)
    monkeypatch.setattr(gpu, "COPY_BYTES", 1000)
    monkeypatch.setattr(gpu, "GEMM_SIZE", 16)
    monkeypatch.setattr(gpu, "describe", lambda: {"gpu": "none", "cuda": "none"})
    for name in ("device", "limits"):
        monkeypatch.setattr(gpu, name, partial(getattr(gpu, name), where="cpu"))


def test_copies_fill_the_cache_three_times_and_are_not_too_many() -> None:
    assert [copies_needed(size, 100) for size in (1, 50, 100, 299, 300, 10**6)] == [64, 6, 3, 2, 1, 1]


def chosen(rows: str = "") -> list[tuple[Family, Row, measure.Device]]:
    """Return the rows of both families on the GPU."""
    choice = CHOICE._replace(rows=rows)
    return [found for family in FAMILIES.values() for found in record.chosen(family, choice)]


def test_tensors_are_copies_of_the_rows_arrays_in_its_dtype() -> None:
    row = next(row for _, row, _ in chosen() if row.dtype == "bfloat16")
    first, second, third = tensors(row, "cpu", cache=sum(array.nbytes for array in row.make().values()) // 2)
    for name, array in row.make().items():
        assert first[name].dtype == torch.bfloat16
        assert first[name].data_ptr() != second[name].data_ptr() != third[name].data_ptr()
        torch.testing.assert_close(first[name], torch.from_numpy(array).to(torch.bfloat16), rtol=0, atol=0)
        torch.testing.assert_close(exact(third)[name], first[name].float(), rtol=0, atol=0)


def test_seconds_are_those_of_one_call() -> None:
    calls: list[int] = []
    found = gpu.burst(lambda: calls.append(1), 1e-4)
    assert len(calls) == 11  # one that warms up, and a millisecond of them
    assert 0 < found[0].seconds < 1e-3


def test_every_side_runs_and_agrees() -> None:
    rows = chosen()
    assert {row.dtype for _, row, _ in rows} == set(DTYPES)
    for family, row, device in rows:
        found = measure.check(family, row, device.copies(row), 1, device)
        assert not found.wrong, row.name
        assert found.errors[OURS] <= row.tolerance, row.name
        lacking = [*found.failures]  # torchvision has no half precision on a CPU
        assert not lacking or (row.dtype != "float32" and lacking == ["torchvision"]), row.name
        assert len(found.calls) > 1, row.name


def test_the_record_becomes_a_page_and_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name in ((parts, "WHOLE"), (growth, "EFFORT")):
        monkeypatch.setattr(module, name, getattr(module, name)._replace(seconds=1e-3))
    monkeypatch.setattr(growth, "AXES", growth.AXES[3:4])
    results = json.loads(json.dumps(record.measure_all(CHOICE))) | {"command": "python -m cudakit bench"}
    assert not record.complaints(results)
    page = report.markdown(results)
    for line in (
        "# cudakit and its peers on a GPU",
        "### deform_conv2d, forward, bfloat16: GPU",
        "### Largest errors in half precision: GPU",
        "### Side of the kernel: backward",
    ):
        assert line in page
    names = [path.name for path in picture.draw(results, tmp_path / "gpu.svg")]
    assert names == ["gpu-deformable.svg", "gpu-growth-forward.svg", "gpu-growth-backward.svg"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
