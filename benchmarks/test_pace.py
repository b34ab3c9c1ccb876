"""What is known about the machine while it measures."""

import pytest

from . import pace


class Clock:
    """A machine that is slowed down until some time, and tells it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow_until: float) -> None:
        self.now, self.slow_until = 0.0, 0.0
        monkeypatch.setattr(pace, "perf_counter", lambda: self.now)
        monkeypatch.setattr(pace, "sleep", self.sleep)
        monkeypatch.setattr(pace, "pace_ns", lambda _: 170.0 if self.now < self.slow_until else 100.0)
        self.watch = pace.Watch()
        self.now, self.slow_until = 10.0, 10.0 + slow_until

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_burst_waits_for_the_full_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, slow_until=0.05)
    assert not clock.watch.at_full_pace()
    assert clock.watch.await_full_pace()
    assert 10.05 <= clock.now < 10.06


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, slow_until=1000)
    for _ in range(100):
        assert not clock.watch.await_full_pace()
    assert clock.now - 10 < 1.2 * pace.PATIENCE * clock.now


def test_a_core_has_a_pace() -> None:
    assert 0 < min(pace.pace_ns(1) for _ in range(10)) < 1e6
    assert 0 < min(pace.pace_ns(2) for _ in range(10)) < 1e6
