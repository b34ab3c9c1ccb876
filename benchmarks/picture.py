"""Pictures of a record: ratios to the peers, the roofline, and growth."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .cases import OURS
from .families import FAMILIES
from .growth import constants
from .growth_picture import COLOURS, FAINT, INK, draw_growth
from .measure import Result
from .peers import title

DPI = 110
WIDTH, ROW, HEAD = 13.0, 0.2, 1.9  # inches
ROOFLINE_HEIGHT = 5.2
SEVERAL_DECADES = 300  # of ratios, for which only powers of ten have labels
FLOOR_SHAPES = "osDv"
LEGEND = 0.4  # height of what the marks mean, of a roofline's


def draw(results: Result, out: Path) -> list[Path]:
    """Draw every family of a record.

    Parameters
    ----------
    results : dict
        The record.
    out : Path
        The file to write; where there are several pictures, what each shows is added to its name.

    Returns
    -------
    list of Path
        The files.
    """
    drawn = dict(_figures(results))
    paths = {name: out if len(drawn) == 1 else out.with_stem(f"{out.stem}-{name}") for name in drawn}
    for name, figure in drawn.items():
        figure.savefig(paths[name])
    return list(paths.values())


def _figures(results: Result) -> Iterator[tuple[str, Figure]]:
    for name, found in results["families"].items():
        if any(run["rows"] for run in found["runs"]):
            yield name, _family(name, found)
    if "growth" in results:
        for way in dict.fromkeys(curve["way"] for curve in results["growth"]["curves"]):
            curves = [curve for curve in results["growth"]["curves"] if curve["way"] == way]
            yield f"growth-{way}", draw_growth(curves, constants(results["growth"]))


def _family(name: str, found: Result) -> Figure:
    """Draw a family: ratios on the left, a panel for each run, and its rooflines on the right."""
    runs = [run for run in found["runs"] if run["rows"]]
    height = max(HEAD + ROW * max(map(_lines, runs)), ROOFLINE_HEIGHT)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1, len(runs) + 1, width_ratios=[*[1.0] * len(runs), 1.1])
    panels = [figure.add_subplot(grid[0, column]) for column in range(len(runs))]
    for panel, run in zip(panels, runs, strict=True):
        _ratios(panel, name, run, labels=panel is panels[0])
    right = grid[0, -1].subgridspec(len(runs) + 1, 1, height_ratios=[*[1.0] * len(runs), LEGEND])
    roofs = [figure.add_subplot(right[row, 0]) for row in range(len(runs))]
    for panel, run in zip(roofs, runs, strict=True):
        _roofline(panel, run)
    below = figure.add_subplot(right[-1, 0])
    below.axis("off")
    style: dict[str, Any] = {
        "fontsize": 7.5,
        "frameon": False,
        "loc": "upper left",
        "bbox_to_anchor": (-0.2, 1),
        "handlelength": 1.5,
    }
    below.legend(*roofs[-1].get_legend_handles_labels(), **style)
    figure.suptitle(f"{FAMILIES[name].title}: cudakit and its peers", x=0.01, ha="left", color=INK, size=15)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), frameon=False)
    return figure


def _lines(run: Result) -> float:
    return len(run["rows"]) + 1.5 * len({row["section"] for row in run["rows"]})


def _ratios(panel: Any, name: str, run: Result, labels: bool) -> None:
    """Draw a line for each row with a dot for each side at its time over cudakit's."""
    places, headings, y = [], [], 0.0
    for section in dict.fromkeys(row["section"] for row in run["rows"]):
        headings.append((y + 0.25, section))
        y += 1.25
        for row in (row for row in run["rows"] if row["section"] == section):
            places.append((y, row))
            y += 1
        y += 0.25
    floors = FAMILIES[name].floors
    for side in FAMILIES[name].sides:
        points = [(row["ratios"][side], y) for y, row in places if side in row["ratios"]]
        if points:
            face = "none" if side in floors else COLOURS[side]
            label = f"{title(side)} (floor)" if side in floors else title(side)
            shape = FLOOR_SHAPES[floors.index(side)] if side in floors else "o"
            panel.plot(*zip(*points, strict=True), shape, ms=6, mfc=face, mec=COLOURS[side], ls="none", label=label)
    panel.axvline(1, color=COLOURS[OURS], lw=2.2, zorder=0, label=OURS)
    panel.set_xscale("log")
    panel.set_ylim(y, -0.5)
    panel.set_yticks([y for y, _ in places], [row["row"] if labels else "" for _, row in places], size=8)
    style = {"size": 8, "weight": "bold", "va": "center", "color": INK}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for y, section in headings:
        panel.annotate(section, (0.01, y), xycoords=("axes fraction", "data"), **style)
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < SEVERAL_DECADES * low else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="x", labelsize=8)
    panel.set_xlabel("time over cudakit's: right of the line, cudakit is faster", size=9, color=INK)
    panel.set_title(run["label"], loc="left", size=11, color=INK)
    panel.grid(color=FAINT)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _roofline(panel: Any, run: Result) -> None:
    """Draw what cudakit reaches against what copies and matrix products allow."""
    bandwidth, rates = run["limits"]["copy_gb_per_s"], run["limits"]["gemm_gflop_per_s"]
    intensities = [row["flop"] / row["bytes"] for row in run["rows"]]
    reached = [row["gflop_per_s"] for row in run["rows"]]
    ridges = [rate / bandwidth for rate in rates.values()]
    span = np.geomspace(min(intensities) / 2, max(intensities + ridges) * 2, 200)
    for style, dtype in zip(cycle(("-", "--", ":", "-.")), dict.fromkeys(row["dtype"] for row in run["rows"])):
        label = f"roof: copies, then matrix products in {dtype}"
        panel.plot(span, np.minimum(span * bandwidth, rates[dtype]), style, color=INK, lw=1.6, label=label)
    for shape, (section, rows) in zip(cycle("os^vD<>PX*p"), _by_section(run).items(), strict=False):
        x, y = [row["flop"] / row["bytes"] for row in rows], [row["gflop_per_s"] for row in rows]
        panel.plot(x, y, shape, ms=6, mec="white", mew=0.6, ls="none", label=section)
    panel.set(xscale="log", yscale="log")
    panel.set_ylim(min(reached) / 2, max(rates.values()) * 2)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("operations per byte of arguments and results", size=9, color=INK)
    panel.set_ylabel("GFLOP/s", size=9, color=INK)
    panel.set_title(f"cudakit under the roofline, {run['label']}", loc="left", size=11, color=INK)
    panel.grid(color=FAINT)
    panel.spines[["top", "right"]].set_visible(False)


def _by_section(run: Result) -> dict[str, list[Result]]:
    return {
        section: [row for row in run["rows"] if row["section"] == section]
        for section in dict.fromkeys(row["section"] for row in run["rows"])
    }
