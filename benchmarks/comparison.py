"""Two records of the same machine, before and after a change, or twice without one."""

from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any

from .cases import OURS
from .peers import title
from .tables import Table

LEAST_MS = 1.0  # below, a call is little more than Python
Result = dict[str, Any]


def _ratios(record: Result) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Yield (run, row, peer) and the ratio, for rows of some length."""
    for run in (run for family in record["families"].values() for run in family["runs"]):
        for row in run["rows"]:
            if row["sides"][OURS]["median_ms"] > LEAST_MS:
                yield from (((run["label"], row["row"], side), ratio) for side, ratio in row["ratios"].items())


def compare(now: Result, before: Result, most: int = 12) -> Table:
    """Return the ratios that changed the most, and in the heading how much all of them did."""
    old = dict(_ratios(before))
    changes = {key: ratio / old[key] for key, ratio in _ratios(now) if key in old}
    heading = f"Against the record of {before['date']}, commit {before['commit']}, rows above {LEAST_MS:g} ms: "
    if len(changes) < 2:
        return heading + "nothing to compare", ["run", "row", "peer", "change of ratio"], []
    sizes = [max(change, 1 / change) - 1 for change in changes.values()]
    heading += f"{len(sizes)} ratios changed by {median(sizes):.0%} in the middle, nine in ten by less than "
    heading += f"{quantiles(sizes, n=10)[-1]:.0%}"
    worst = sorted(changes.items(), key=lambda item: -max(item[1], 1 / item[1]))[:most]
    return (
        heading,
        ["run", "row", "peer", "change of ratio"],
        [[label, row, title(side), f"{change - 1:+.0%}"] for (label, row, side), change in worst],
    )
