"""The picture of the experiment: errors, and where the units look on one digit."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from networks import MODELS
from trial import EXAMPLE, field_warps
from warps import CANVAS, TRAIN, digits
from warps import draw as draw_digits

COLOURS = {"pose": "#3b6fb6", "elastic": "#d98032"}
FIRST = "#b3202c"
NAMES = {"pose": "global pose", "elastic": "elastic warp"}


def bars(axes: Any, trainings: list[dict[str, Any]]) -> None:
    """Draw the error of each model under each kind of warp."""
    for side, (warp, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
        errors = [[t["error"] for t in trainings if (t["model"], t["warp"]) == (m, warp)] for m in MODELS]
        places = np.arange(len(MODELS)) + side
        spread = [stdev(e) if len(e) > 1 else 0 for e in errors]
        heights = list(map(mean, errors))
        axes.bar(places, heights, 0.38, yerr=spread, color=colour, capsize=3, label=NAMES[warp], ecolor="#333333")
        for place, height, deviation in zip(places, heights, spread, strict=True):
            axes.text(place, height + deviation + 0.1, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(MODELS)), list(MODELS))
    axes.set_ylabel("wrong answers, % (mean ± standard deviation)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center")


def sight(axes: Any, canvas: np.ndarray, plain: np.ndarray, example: dict[str, Any], colour: str) -> None:
    """Draw on a digit where the plain network's units look, where these look, and how wide the first one's field is."""
    centres = np.array(example["centres"])
    axes.imshow(canvas, cmap="gray_r", vmax=1.8)
    for start, end in zip(plain, centres, strict=True):
        axes.plot(*np.stack([start, end], 1)[::-1], "-", color=colour, lw=0.8, alpha=0.5)
    axes.plot(*plain.T[::-1], ".", color="#999999", ms=2)
    axes.plot(*centres.T[::-1], ".", color=colour, ms=5)
    variances, directions = np.linalg.eigh(example["covariance"])
    turn = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.sqrt(variances) * np.stack([np.cos(turn), np.sin(turn)], 1)
    axes.plot(*(centres[0] + circle @ directions.T).T[::-1], "-", color=FIRST, lw=1)
    axes.plot(*centres[0, ::-1], "o", color=FIRST, ms=5)
    axes.set(xticks=[], yticks=[], xlim=(-4.5, CANVAS + 3.5), ylim=(CANVAS + 3.5, -4.5))


def sights(panels: Any, trainings: list[dict[str, Any]]) -> None:
    """Draw the fields of every model on one digit, warped in both ways."""
    images, _ = digits("cpu")
    for row, (warp, colour) in zip(panels, COLOURS.items(), strict=True):
        canvas = draw_digits(images[EXAMPLE][None], field_warps(warp)[EXAMPLE - TRAIN][None])[0, 0].numpy()
        examples = {t["model"]: t["example"] for t in reversed(trainings) if t["warp"] == warp}  # of the first seed
        plain = np.array(examples["plain"]["centres"])
        for axes, model in zip(row, MODELS, strict=True):
            sight(axes, canvas, plain, examples[model], colour)
        row[0].set_ylabel(NAMES[warp])
    for axes, model in zip(panels[0], MODELS, strict=True):
        axes.set_title(model, fontsize=10)


def draw(report: dict[str, Any], out: Path) -> None:
    """Write the picture of a report."""
    figure = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(0.85, 1.3))
    left.suptitle("error on new writers", fontsize=10)
    bars(left.subplots(), report["trainings"])
    right.suptitle("where 5 x 5 units look on one digit: centres of their fields (red: one field)", fontsize=10)
    sights(right.subplots(len(COLOURS), len(MODELS)), report["trainings"])
    figure.savefig(out)
