"""Two records of the same machine, before and after a change, or twice without one."""

from collections.abc import Iterator
from statistics import median, quantiles

from .cases import OURS
from .distance import is_far
from .measure import Result
from .peers import title
from .tables import Table

AGREED = 0.1
LEAST_MS = 1.0  # below, a call is little more than Python


def _ratios(record: Result) -> Iterator[tuple[tuple[str, str, str], float, bool]]:
    """Yield (run, row, peer), the ratio, and whether the cores were far apart then; for rows of some length."""
    for run in (run for family in record["families"].values() for run in family["runs"]):
        for row in run["rows"]:
            if row["sides"][OURS]["median_ms"] > LEAST_MS:
                far = is_far(row, run["rows"])
                yield from (((run["label"], row["row"], side), ratio, far) for side, ratio in row["ratios"].items())


def compare(now: Result, before: Result, most: int = 12) -> Table:
    """Return the ratios that changed the most, and in the heading how much all of them did."""
    old = {key: (ratio, far) for key, ratio, far in _ratios(before)}
    pairs = [(key, ratio / old[key][0], far, old[key][1]) for key, ratio, far in _ratios(now) if key in old]
    changes = {key: change for key, change, far, was_far in pairs if far == was_far}
    heading = f"Against the record of {before['date']}, commit {before['commit']}, rows above {LEAST_MS:g} ms: "
    apart = len(pairs) - len(changes)
    if len(changes) < 2:
        return heading + "nothing to compare", ["run", "row", "peer", "change of ratio"], []
    sizes = [max(change, 1 / change) - 1 for change in changes.values()]
    close = sum(size <= AGREED for size in sizes) / len(sizes)
    heading += f"{len(sizes)} ratios changed by {median(sizes):.0%} (median), nine in ten by less than "
    heading += f"{quantiles(sizes, n=10)[-1]:.0%}, {close:.0%} of them by at most {AGREED:.0%}"
    if apart:
        heading += f"; left out: {apart} of rows in which the cores were far apart in one of the records"
    worst = sorted(changes.items(), key=lambda item: -max(item[1], 1 / item[1]))[:most]
    return (
        heading,
        ["run", "row", "peer", "change of ratio"],
        [[label, row, title(side), f"{change - 1:+.0%}"] for (label, row, side), change in worst],
    )
