"""The picture that ``cudakit demo`` writes."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from cudakit.cli.command import Backend, to_numpy
from cudakit.cli.registration import COLOURS, IDENTITY, Outcome, Progress, Transform, warp

WIDTH, DPI = 12.0, 110  # inches, dots per inch
MARGIN, GAP = 0.15, 0.1  # inches
HEAD, TITLE, BAR, CURVES, FOOT = 0.75, 0.3, 0.5, 2.1, 0.5  # inches, from top to bottom, the pictures before BAR
INK, FAINT, LOSS, ERROR, FIRST, LAST = "#222222", "#777777", "#1f5fa8", "#d1495b", "#4cc9f0", "#ffb703"
NO_DATA = "#d8d8d8"
BRIGHTEST = 0.6  # the difference that is drawn brightest
OUTLINES = 6  # boxes drawn between the first and the last
FLOOR = 1e-12  # below this a curve is as good as zero

Image = NDArray[np.float64]


def draw(photo: Any, outcome: Outcome, backend: Backend, out: Path) -> None:
    """Draw what was learnt and how, and write it to `out`.

    Parameters
    ----------
    photo : array, shape (1, 3, H, W)
        The photograph.
    outcome : Outcome
        The warped picture and the steps of learning.
    backend : Backend
        Where the warped picture is.
    out : Path
        The file to write.
    """
    original, warped = _image(photo), _image(to_numpy(outcome.warped))
    back = to_numpy(warp(outcome.warped, outcome.steps[-1].theta, backend.xp))
    coverage = back[:, COLOURS:]
    recovered = _image(back / np.maximum(coverage, 0.5))  # no dark rim where the black around the picture is mixed in
    before = np.abs(warped - original).mean(2)
    # What the warp pushed out of the picture cannot come back.
    after = np.ma.masked_array(np.abs(recovered - original).mean(2), coverage[0, 0] < 0.5)

    page = _Page(original.shape[0] / original.shape[1])
    page.heading(outcome)
    page.image(0, original, "original")
    page.image(1, warped, "warped, with the learnt box")
    _outlines(page.axes[-1], outcome)
    page.image(2, recovered, "recovered")
    page.difference(3, before, f"difference before: mean {before.mean():.3f}")
    page.difference(4, after, f"difference after: mean {after.mean():.3f}")
    _curves(page.curves(), outcome)
    page.figure.savefig(out)


class _Page:
    """The figure: five pictures in a row, curves below."""

    def __init__(self, aspect: float) -> None:
        self._panel = (WIDTH - 2 * MARGIN - 4 * GAP) / 5
        self._tall = self._panel * min(max(aspect, 0.4), 2.0)
        self._height = HEAD + TITLE + self._tall + BAR + CURVES + FOOT
        self.figure = Figure((WIDTH, self._height), dpi=DPI)
        self.axes: list[Any] = []

    def _add(self, left: float, top: float, width: float, height: float) -> Any:
        """Add axes at a place in inches from the top left."""
        bottom = self._height - top - height
        place = (left / WIDTH, bottom / self._height, width / WIDTH, height / self._height)
        self.axes.append(self.figure.add_axes(place))
        return self.axes[-1]

    def heading(self, outcome: Outcome) -> None:
        """Write the title and the result."""
        result = (
            f"{len(outcome.steps) - 1} steps bring the corners from {outcome.errors[0]:.0f} pixels off "
            f"to {outcome.errors[-1]:.2f} pixels"
        )
        self._line(0.1, "A spatial transformer learns to undo a warp", INK, fontsize=15, fontweight="bold")
        self._line(0.45, result, FAINT, fontsize=10.5)

    def _line(self, top: float, text: str, colour: str, **style: Any) -> None:
        self.figure.text(0.5, 1 - top / self._height, text, ha="center", va="top", color=colour, **style)

    def image(self, column: int, image: Any, title: str, **options: Any) -> Any:
        """Show an image in a column of the row."""
        axes = self._add(MARGIN + column * (self._panel + GAP), HEAD + TITLE, self._panel, self._tall)
        axes.set_title(title, fontsize=10, color=INK, pad=5)
        axes.set_axis_off()
        return axes.imshow(image, **options)

    def difference(self, column: int, difference: Any, title: str) -> None:
        """Show a difference, and its scale below."""
        colours = colormaps["magma"].with_extremes(bad=NO_DATA)
        shown = self.image(column, difference, title, cmap=colours, vmin=0, vmax=BRIGHTEST)
        left = MARGIN + column * (self._panel + GAP)
        place = self._add(left + 0.1, HEAD + TITLE + self._tall + 0.07, self._panel - 0.2, 0.08)
        bar = self.figure.colorbar(shown, cax=place, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.set_ticks([0, BRIGHTEST / 2, BRIGHTEST])
        place.tick_params(labelsize=7.5, length=2, pad=2, colors=FAINT)

    def curves(self) -> Any:
        """Return the axes of the curves."""
        sides = 0.75
        return self._add(sides, HEAD + TITLE + self._tall + BAR, WIDTH - 2 * sides, CURVES)


def _image(pixels: Any) -> Image:
    """Return (1, C, H, W) as Matplotlib takes it, without the coverage."""
    image: Image = np.clip(np.moveaxis(pixels[0, :COLOURS], 0, -1).astype(np.float64), 0, 1)
    return image


def _outlines(axes: Any, outcome: Outcome) -> None:
    """Draw where the original's frame is thought to lie in the warped picture, from the first step to the last."""
    height, width = outcome.warped.shape[2:]
    # Evenly over the distance covered: most of it is covered in the first few steps.
    levels = np.linspace(outcome.errors[0], outcome.errors[-1], OUTLINES + 2)[1:-1]
    between = [next((i for i, error in enumerate(outcome.errors) if error <= level), -1) for level in levels]
    for step in between:
        axes.plot(*_frame(outcome.steps[step].theta, height, width), color=FIRST, lw=0.7, alpha=0.7)
    axes.plot(*_frame(IDENTITY, height, width), color=FIRST, lw=1.8, ls=(0, (4, 3)), label="at first")
    axes.plot(*_frame(outcome.steps[-1].theta, height, width), color=LAST, lw=1.8, label="in the end")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8.5, frameon=False, labelcolor=INK)


def _frame(theta: Transform, height: int, width: int) -> tuple[Any, Any]:
    """Return the pixel coordinates x, y of the closed outline of the frame under a transform."""
    corners = np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], [1, 1, 1, 1, 1]])
    x, y = theta @ corners
    return ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2


def _curves(axes: Any, outcome: Outcome) -> None:
    """Draw the loss and the error of the corners, step by step."""
    steps = range(len(outcome.steps))
    errors = axes.twinx()
    losses = [step.loss for step in outcome.steps]
    for side, values, colour, label in (
        (axes, losses, LOSS, "loss: mean squared difference"),
        (errors, outcome.errors, ERROR, "error of the corners, pixels"),
    ):
        side.semilogy(steps, values, color=colour, lw=1.6)
        side.set_ylabel(label, fontsize=9, color=colour)
        side.tick_params(axis="x", labelsize=8.5, colors=FAINT)
        side.tick_params(axis="y", which="both", labelsize=8.5, colors=colour)
        side.spines[:].set_color("#cccccc")
        decades = np.log10(max(*values, FLOOR) / max(min(values), FLOOR))
        side.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
        side.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.yaxis.set_minor_formatter(NullFormatter())
        side.margins(x=0, y=0.12)
    axes.set_xlabel("step", fontsize=9, color=FAINT, labelpad=2)
    _stages(axes, outcome.steps)


def _stages(axes: Any, steps: list[Progress]) -> None:
    """Shade every other stage and write its name at the top."""
    starts = [i for i, step in enumerate(steps) if i == 0 or step.stage != steps[i - 1].stage]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(steps) - 1], strict=True)):
        if number % 2 == 0:
            axes.axvspan(start, end, color="#f2f2f2", lw=0, zorder=0)
        place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text((start + end) / 2, 0.97, steps[start].stage.name, fontsize=8, color=FAINT, **place)
