"""Rows in parts: what each process finds about a row, and what the parts make together.

From process to process some times differ by up to a fifth, sometimes by half, mostly for as long as one lives. So
several processes share the rounds of a row; what takes long is left to the first of them, which tells the others how
long calls take.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .cases import OURS, Family, Row
from .distance import crossing_ns, far_from
from .measure import CPU, LONG_SECONDS, WHOLE, Checked, Device, Result, Turns, check, interleaved, ratio, summary

PROCESSES = 3
Seconds = Mapping[str, float]  # of a call, by the side


class Share(NamedTuple):
    """Which part of the rounds a process measures, of how many, and what calls took in the first, by the row's name."""

    part: int
    parts: int
    known: Mapping[str, Seconds]


ALL = Share(0, 1, {})


class Part(NamedTuple):
    """What one process found about a row.

    `checked` is without the calls, which stay in their process; `turns` are those of each side; `crossing_ns` is how
    far apart the cores were.
    """

    checked: Checked
    turns: dict[str, Turns]
    crossing_ns: float | None

    def seconds(self) -> Seconds:
        """Return how long a call of each side takes."""
        return {side: 1e-3 * summary(turns)["median_ms"] for side, turns in self.turns.items()}


def measure_part(family: Family, row: Row, threads: int, device: Device = CPU, share: Share = ALL) -> Part:
    """Time the sides in a part of the rounds; in the first, check that they agree with cudakit."""
    known = share.known.get(row.name, {})
    slow = {side for side, seconds in known.items() if seconds >= LONG_SECONDS and side != OURS}
    before = crossing_ns(threads)
    sides = family.only(family.sides.keys() - slow)
    checked = check(sides, row, device.copies(row), threads, device, compare=share.part == 0)
    turns = interleaved(checked.calls, device, WHOLE, share.parts, known)
    after = crossing_ns(threads)
    apart = max(before, after) if before and after else None
    return Part(checked._replace(calls={}), turns, apart)


def together(row: Row, parts: Sequence[Part], least: float | None) -> Result:
    """Return what the parts of a row say together: of all whether sides agree, and times of those with near cores.

    `least` is how far apart the cores were at best. Sides that were timed in other parts only count there.
    """
    turns: dict[str, Turns] = {}
    timed, checks = near(parts, least), [part.checked for part in parts]
    known = {side for part in timed for side in part.turns}
    for number, part in enumerate(parts):
        counts = any(part is one for one in timed)
        for side, found in part.turns.items():
            if counts or side not in known:
                turns.setdefault(side, {}).update({(2 * WHOLE.rounds * number + turn): found[turn] for turn in found})
    distances = [part.crossing_ns for part in timed if part.crossing_ns]
    return {
        "row": row.name,
        "section": row.section,
        "dtype": row.dtype,
        "bytes": checks[0].traffic,
        "flop": row.case.flop,
        "sides": {side: summary(found) for side, found in turns.items()},
        "ratios": {side: ratio(found, turns[OURS]) for side, found in turns.items() if side != OURS},
        "errors": _joined(one.errors for one in checks),
        "disagreements": _joined(one.wrong for one in checks),
        "failures": _joined(one.failures for one in checks),
        "crossing_ns": max(distances) if distances else None,
    }


def _joined(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for one in found for key, value in one.items()}


def near(parts: Sequence[Part], least: float | None) -> Sequence[Part]:
    """Return those parts during which the cores were not far apart, or all where there are none."""
    return [part for part in parts if not far_from(least, part.crossing_ns)] or parts
