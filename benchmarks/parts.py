"""Rows in parts: what each process finds about a row, and what the parts make together.

What the system makes of a process when it begins, such as where it puts the pages of code and arrays, decides on up
to a fifth of a time, sometimes on half of it, for as long as it lives. So several processes share the rounds of a row.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .cases import OURS, Family, Row
from .distance import crossing_ns, far_from
from .measure import CPU, ROUNDS, Device, Result, Turns, check, interleaved, ratio, summary

PROCESSES = 3


class Part(NamedTuple):
    """What one process found about a row.

    `traffic` is cudakit's, in bytes; `turns` are those of each side; `errors` are the largest ones of sides that agree,
    `wrong` says how the others do not, `failures` why a side could not be called; `crossing_ns` is how far apart the
    cores were.
    """

    traffic: int
    turns: dict[str, Turns]
    errors: dict[str, float]
    wrong: dict[str, str]
    failures: dict[str, str]
    crossing_ns: float | None


def measure_part(family: Family, row: Row, threads: int, device: Device = CPU, parts: int = 1) -> Part:
    """Check that the sides agree with cudakit, then time them in one of so many parts."""
    before = crossing_ns(threads)
    checked = check(family, row, device.copies(row), threads, device)
    turns = interleaved(checked.calls, device, parts=parts)
    after = crossing_ns(threads)
    apart = max(before, after) if before and after else None
    return Part(checked.traffic, turns, checked.errors, checked.wrong, checked.failures, apart)


def together(row: Row, parts: Sequence[Part]) -> Result:
    """Return what the parts of a row say together."""
    turns: dict[str, Turns] = {}
    for number, part in enumerate(parts):
        for side, found in part.turns.items():
            turns.setdefault(side, {}).update({(2 * ROUNDS * number + turn): found[turn] for turn in found})
    distances = [part.crossing_ns for part in parts if part.crossing_ns]
    return {
        "row": row.name,
        "section": row.section,
        "dtype": row.dtype,
        "bytes": parts[0].traffic,
        "flop": row.case.flop,
        "sides": {side: summary(found) for side, found in turns.items()},
        "ratios": {side: ratio(found, turns[OURS]) for side, found in turns.items() if side != OURS},
        "errors": _joined(part.errors for part in parts),
        "disagreements": _joined(part.wrong for part in parts),
        "failures": _joined(part.failures for part in parts),
        "crossing_ns": max(distances) if distances else None,
    }


def _joined(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for one in found for key, value in one.items()}


def near(parts: Sequence[Part], nearest: float | None) -> Sequence[Part]:
    """Return those parts during which the cores were not far apart, or all where there are none."""
    return [part for part in parts if not far_from(nearest, part.crossing_ns)] or parts
