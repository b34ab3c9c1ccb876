"""The picture of how times grow."""

from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .cases import OURS
from .peers import title

SIZE, DPI = (12.0, 6.8), 110  # inches, dots per inch
COLUMNS = 3
LINE = 130  # characters
INK, FAINT = "#222222", "#e4e4e4"
COLOURS = {
    OURS: "#1f5fa8",
    "torch": "#2a9d6f",
    "torch_composite": "#2a9d6f",
    "torchvision": "#8a5fbf",
    "openvino": "#d1495b",
    "onnxruntime": "#e08e0b",
    "opencv": "#b0569a",
    "scipy": "#7a5230",
    "jax": "#17a2b8",
    "dense_conv": "#888888",
    "gemm_only": "#333333",
    "copy_only": "#555555",
}
DASHED = {"dense_conv"}


def draw_growth(curves: list[dict[str, Any]], base: str) -> Figure:
    """Draw a panel for each curve.

    Parameters
    ----------
    curves : list of dict
        Each with the "way" and the name of an "axis", and "points", which hold a "value" and the "ms" of every side.
    base : str
        What stays the same.
    """
    figure = Figure(SIZE, dpi=DPI, layout="constrained")
    panels = list(figure.subplots(-(-len(curves) // COLUMNS), COLUMNS, sharey=True, squeeze=False).flat)
    for panel, curve in zip(panels, curves, strict=False):
        _panel(panel, curve)
    for panel in panels[len(curves) :]:
        panel.remove()
    for panel in panels[::COLUMNS]:
        panel.set_ylabel("ms")
    heading = f"deform_conv2d, {curves[0]['way']}: time of a call\n{fill(base, LINE)}"
    figure.suptitle(heading, x=0.01, ha="left", color=INK, size=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1), frameon=False)
    return figure


def _panel(panel: Any, curve: dict[str, Any]) -> None:
    values = [point["value"] for point in curve["points"]]
    for side, colour in COLOURS.items():
        found = [(point["value"], point["ms"][side]) for point in curve["points"] if side in point["ms"]]
        if found:
            style = {"lw": 2.6, "zorder": 3} if side == OURS else {"lw": 1.3, "ls": "--" if side in DASHED else "-"}
            panel.plot(*zip(*found, strict=True), color=colour, marker="o", ms=3.5, label=title(side), **style)
    panel.set_xscale("symlog" if 0 in values else "log", **({"linthresh": 0.5} if 0 in values else {}))
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_major_locator(LogLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel(curve["axis"], color=INK)
    panel.grid(color=FAINT)
    panel.spines[["top", "right"]].set_visible(False)
