"""Measure how the time of a deformable convolution grows, and draw it: ``python -m benchmarks.growth --help``.

Writes cpu-growth.json, cpu-growth.md and a picture each of the forward and the backward pass.
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from .cases import OURS
from .deformable import FAMILY, Deform, row
from .growth_picture import draw
from .measure import check, interleaved, summary
from .overhead import ROOT
from .peers import set_threads, title, versions
from .report import NOTHING, machine_lines, number, table_lines
from .run import commit, machine

BASE = Deform((1, 64, 56, 56), 64)
SMALL_BASE = Deform((1, 8, 6, 6), 8)
SIDES = (OURS, *FAMILY.rivals, "dense_conv")
ROUNDS = 3
WAYS = ("forward", "backward")
PAGE = "cpu-growth"
Result = dict[str, Any]


class Axis(NamedTuple):
    """What grows: its name, its values, and the base case with one of them."""

    name: str
    values: Sequence[float]
    change: Callable[[Deform, Any], Deform]


def cores() -> tuple[int, ...]:
    """Return numbers of threads up to that of the cores."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (*(2**i for i in range(most.bit_length()) if 2**i < most), most)


THREADS = Axis("threads", cores(), lambda case, _: case)
AXES = (
    Axis("batch", (1, 2, 4, 8, 16), lambda case, value: case._replace(shape=(value, *case.shape[1:]))),
    Axis(
        "channels, in and out",
        (16, 32, 64, 128, 256),
        lambda case, value: case._replace(shape=(case.shape[0], value, *case.shape[2:]), outputs=value),
    ),
    Axis(
        "side of the image in pixels",
        (14, 28, 56, 112, 224),
        lambda case, value: case._replace(shape=(*case.shape[:2], value, value)),
    ),
    Axis("side of the kernel", (1, 3, 5, 7), lambda case, value: case._replace(kernel=value)),
    Axis(
        "standard deviation of offsets in pixels",
        (0, 0.5, 1, 2, 4, 8, 16, 32, 64),
        lambda case, value: case._replace(spread=value),
    ),
)


def point(case: Deform, threads: int) -> dict[str, float]:
    """Return the median milliseconds of every side."""
    set_threads(threads)
    family = FAMILY._replace(sides={side: FAMILY.sides[side] for side in SIDES})
    this = row("growth", case)
    calls = check(family, this, [this.make()], threads).calls
    return {side: summary(samples)["median_ms"] for side, samples in interleaved(calls, rounds=ROUNDS).items()}


def curves(base: Deform, threads: int, axes: Sequence[Axis]) -> list[Result]:
    """Measure every way along every axis."""
    console, found = Console(stderr=True), []
    for way in WAYS:
        for axis in axes:
            points = []
            for value in axis.values:
                case = axis.change(base, value)._replace(backward=way == "backward")
                points.append({"value": value, "ms": point(case, int(value) if axis is THREADS else threads)})
                console.print(f"{way}, {axis.name} {value}: {points[-1]['ms'][OURS]:.3f} ms", highlight=False)
            found.append({"way": way, "axis": axis.name, "points": points})
    return found


def page(results: Result) -> str:
    """Return the page in Markdown."""
    batch, channels, *space = results["base"]["shape"]
    lines = [
        "# How the time of a deformable convolution grows on a CPU",
        "",
        "Reproduce with `python -m benchmarks.growth`.",
        "",
        "\n\n".join(machine_lines({**results, "runs": []})),
        "",
        f"Median milliseconds. One thing varies at a time; the rest is batch {batch}, {channels} channels in and out, "
        f"{space[0]}×{space[1]} pixels, a kernel of 3×3, padding 1, a mask, offsets with a standard deviation of "
        f"{results['base']['spread']:g} pixels, float32, {results['threads']} thread(s). Dense convolution samples "
        "nothing: it is a floor.",
        *(line for way in WAYS for line in ("", f"![{way}]({PAGE}-{way}.png)")),
    ]
    for curve in results["curves"]:
        sides = [side for side in SIDES if side in curve["points"][0]["ms"]]
        rows = [
            [f"{point['value']:g}", *(number(point["ms"][side]) if side in point["ms"] else NOTHING for side in sides)]
            for point in curve["points"]
        ]
        lines += ["", f"## {curve['axis'].capitalize()}: {curve['way']}", ""]
        lines += table_lines([curve["axis"], *map(title, sides)], rows)
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="where it is not threads that grow in number")
    parser.add_argument("--small", action="store_true", help="small sizes: a check that everything runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    base = SMALL_BASE if options.small else BASE
    results = {
        "machine": machine("cpu"),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": versions(SIDES),
        "threads": options.threads,
        "base": base._asdict(),
        "curves": curves(base, options.threads, [*AXES, THREADS]),
    }
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (options.folder / f"{PAGE}.json").write_text(text + "\n", encoding="utf-8")
    (options.folder / f"{PAGE}.md").write_text(page(results), encoding="utf-8")
    for way in WAYS:
        draw([curve for curve in results["curves"] if curve["way"] == way], options.folder / f"{PAGE}-{way}.png")


if __name__ == "__main__":
    main()
