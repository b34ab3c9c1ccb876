"""The GPU's half of the benchmarks, on a CPU: all of it but the clock."""

import json
from argparse import Namespace
from functools import partial
from time import perf_counter

import pytest

from . import gpu, report, run
from .cases import OURS, Family, Row
from .deformable import GPU_FAMILY, gpu_rows
from .measure import check

torch = pytest.importorskip("torch")


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


def test_copies_fill_the_cache_three_times_and_are_not_too_many() -> None:
    assert [gpu.copies_needed(size, 100) for size in (1, 50, 100, 299, 300, 10**6)] == [64, 6, 3, 2, 1, 1]


def test_tensors_are_copies_of_the_rows_arrays_in_its_dtype() -> None:
    (row, *_) = (row for row in gpu_rows(small=True) if row.dtype == "bfloat16")
    first, second, third = gpu.tensors(row, "cpu", cache=sum(array.nbytes for array in row.make().values()) // 2)
    for name, array in row.make().items():
        assert first[name].dtype == torch.bfloat16
        assert first[name].data_ptr() != second[name].data_ptr() != third[name].data_ptr()
        torch.testing.assert_close(first[name], torch.from_numpy(array).to(torch.bfloat16), rtol=0, atol=0)
        torch.testing.assert_close(gpu.exact(third)[name], first[name].float(), rtol=0, atol=0)


def test_seconds_are_those_of_one_call() -> None:
    calls: list[int] = []
    found = gpu.burst(lambda: calls.append(1), 1e-4)
    assert len(calls) == 11  # one that warms up, and a millisecond of them
    assert 0 < found[0].seconds < 1e-3


@pytest.mark.parametrize(
    ("family", "row"),
    [pytest.param(family, row, id=row.name) for family in run.FAMILIES["cuda"].values() for row in family.rows(True)],
)
def test_every_side_runs_and_agrees(family: Family, row: Row) -> None:
    device = gpu.device("cpu")
    found = check(family, row, device.copies(row), 1, device)
    assert not found.wrong
    assert found.errors[OURS] <= row.tolerance
    assert not found.failures or (row.dtype != "float32" and [*found.failures] == ["torchvision"])  # on a CPU
    assert len(found.calls) > 1


def test_the_page_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "COPY_BYTES", 1000)
    monkeypatch.setattr(gpu, "describe", lambda: {"gpu": "none", "cuda": "none"})
    for name in ("device", "copy_bandwidth"):
        monkeypatch.setattr(gpu, name, partial(getattr(gpu, name), "cpu"))
    options = Namespace(device="cuda", family="deformable", rows="n2c16_8_v2_fwd(_bfloat16)?$", small=True)
    results = json.loads(json.dumps(run.measure_all(GPU_FAMILY, options)))
    assert not run.complaints(results)
    page = report.markdown(results, GPU_FAMILY)
    assert "# Deformable convolution on a GPU" in page
    assert "## deform_conv2d, forward, bfloat16: GPU" in page
    assert "## Largest errors in half precision" in page
