"""The picture that ``cudakit fov`` writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cudakit.cli.fov_scene import Sight

WIDTH, DPI = 13.33, 120  # inches, as wide as a slide, and dots per inch
MARGIN, GAP = 0.35, 0.12  # inches
PANELS = {1: 2.3, 2: 2.0, 3: 1.72}  # inches: the side of a view where there are so many rows
HEAD, TITLES, LINE, FOOT = 0.92, 0.6, 0.21, 0.78  # inches
INK, FAINT = "#1c1c28", "#6c6c7c"
COLOURS = ("#00b4f0", "#ffa600", "#ff4fa0")  # of the places
GLOW = "inferno"
DIM = 0.6  # of the photograph's brightness below a field
HEADERS = ("diameter", "shape", "angle", "shared")
COLUMNS = (0.27, 0.53, 0.75, 1.0)  # where the numbers end, in shares of a panel
LEGEND = (
    "dots: the positions that the unit reads, larger ones weigh more     +: the place looked at{ring}     "
    "glow: effective receptive field, the mean squared gradient over random networks with ReLU\n"
    "diameter: four standard deviations, in pixels     shape: longest axis : shortest     "
    "angle: of the longest axis, counter-clockwise from the horizontal     "
    "shared: overlap with the deformable stack’s field"
)
RING = "     ○: where the swirl should make it look"


class Words(NamedTuple):
    """What is written above the picture."""

    title: str
    subtitle: str


def draw(photo: Any, target: Any, rows: Sequence[Sequence[Sight]], words: Words, out: Path) -> None:
    """Draw the fields of view of a few places, a row for each, and of a few stacks, a column for each.

    Parameters
    ----------
    photo : array, shape (1, 3, H, W)
        The photograph.
    target : array, shape (1, 3, H, W), or None
        What the stacks have learnt to make of it, to be shown beside it.
    rows : sequence of sequences of Sight
        The fields.
    words : Words
        The title and a line below it.
    out : Path
        The file to write.
    """
    page = _Page(len(rows), len(rows[0]), photo.shape[2] / photo.shape[3])
    page.heading(words)
    reach = _reach(rows)
    _overview(page.overview(), _image(photo), rows, reach)
    if target is not None:
        _inset(page.inset(), _image(target))
    for i, row in enumerate(rows):
        for j, sight in enumerate(row):
            axes = page.panel(i, j)
            _view(axes, _image(photo), sight, reach, COLOURS[i])
            if i == 0:
                page.column(j, sight.stack.name, sight.stack.note)
            page.numbers(i, j, sight.numbers)
        page.label(i, row[0].place.letter, row[0].place.what)
    page.legend(rows[0][0].goal is not None)
    quick: dict[str, Any] = {"pil_kwargs": {"compress_level": 4}} if out.suffix.lower() == ".png" else {}
    page.figure.savefig(out, **quick)


class _Page:
    """The figure: the photograph on the left, a grid of views on the right, their numbers below."""

    def __init__(self, rows: int, columns: int, aspect: float) -> None:
        self._side = PANELS[rows]
        self._tall = rows * (self._side + GAP) - GAP
        self._height = HEAD + TITLES + self._tall + (rows + 1) * LINE + FOOT
        self.figure = Figure((WIDTH, self._height), dpi=DPI, facecolor="white")
        self._left = WIDTH - MARGIN - columns * (self._side + GAP) + GAP
        room = self._left - 2 * MARGIN
        self._photo = (min(room, self._tall / aspect), min(self._tall, room * aspect))

    def _add(self, left: float, top: float, width: float, height: float) -> Any:
        bottom = self._height - top - height
        return self.figure.add_axes((left / WIDTH, bottom / self._height, width / WIDTH, height / self._height))

    def _write(self, left: float, top: float, text: str, colour: str, size: float, **style: Any) -> Any:
        place: dict[str, Any] = {"va": "top", "color": colour, "fontsize": size} | style
        return self.figure.text(left / WIDTH, 1 - top / self._height, text, **place)

    def heading(self, words: Words) -> None:
        """Write the title and what is shown."""
        self._write(MARGIN, 0.3, words.title, INK, 21, fontweight="bold")
        self._write(MARGIN, 0.76, words.subtitle, FAINT, min(11.5, 1560 / len(words.subtitle)))

    def overview(self) -> Any:
        """Return the axes of the photograph."""
        return self._add(MARGIN, HEAD + TITLES, *self._photo)

    def inset(self) -> Any:
        """Return the axes of a small picture in the corner of the photograph."""
        wide, tall = (0.28 * side for side in self._photo)
        return self._add(MARGIN + self._photo[0] - wide - 0.08, HEAD + TITLES + 0.08, wide, tall)

    def panel(self, row: int, column: int) -> Any:
        """Return the axes of a view."""
        return self._add(self._start(column), self._top(row), self._side, self._side)

    def _start(self, column: int) -> float:
        return self._left + column * (self._side + GAP)

    def _top(self, row: int) -> float:
        return HEAD + TITLES + row * (self._side + GAP)

    def column(self, column: int, name: str, note: str) -> None:
        """Write what a column shows."""
        middle, top = self._start(column) + self._side / 2, HEAD + TITLES
        self._write(middle, top - 0.25, name, INK, 11.5, ha="center", va="bottom", fontweight="bold")
        self._write(middle, top - 0.07, note, FAINT, 8, ha="center", va="bottom")

    def _line(self, row: int) -> float:
        return HEAD + TITLES + self._tall + 0.14 + (row + 1) * LINE

    def label(self, row: int, letter: str, what: str) -> None:
        """Write the place of a row beside its views and beside its numbers."""
        middle = self._top(row) + self._side / 2
        self._write(self._left - 0.12, middle, letter, COLOURS[row], 16, ha="right", va="center", fontweight="bold")
        self._write(self._left - 0.12, middle + 0.2, what, FAINT, 8.5, ha="right", va="center")
        self._write(self._left - 0.12, self._line(row), letter, COLOURS[row], 9, ha="right", fontweight="bold")

    def legend(self, goals: bool) -> None:
        """Write what the marks mean."""
        text = LEGEND.format(ring=RING if goals else "")
        self._write(MARGIN, self._height - 0.5, text, FAINT, 7.5, linespacing=1.7)

    def numbers(self, row: int, column: int, numbers: Sequence[str]) -> None:
        """Write the numbers of a view."""
        for share, header, text in zip(COLUMNS, HEADERS, numbers, strict=True):
            right = self._start(column) + share * self._side
            if row == 0:
                self._write(right, self._line(-1), header, FAINT, 6.8, ha="right")
            self._write(right, self._line(row), text, INK, 8.5, ha="right")


def _image(photo: Any) -> Any:
    return np.clip(np.moveaxis(photo[0], 0, -1), 0, 1)


def _reach(rows: Sequence[Sequence[Sight]]) -> float:
    """Return half the side of a view in pixels: room for the widest field."""
    widest = (
        np.abs(sight.moments.centre - sight.place.pixel).max() + 2.7 * sight.moments.axes[0]
        for row in rows
        for sight in row
        if sight.moments.mass
    )
    return float(max(12.0, *widest))


def _outlined(colour: str, width: float) -> Any:
    return [patheffects.withStroke(linewidth=width, foreground=colour, alpha=0.6)]


def _overview(axes: Any, image: Any, rows: Sequence[Sequence[Sight]], reach: float) -> None:
    axes.imshow(image, interpolation="bicubic")
    axes.set_axis_off()
    for row, colour in zip(rows, COLOURS, strict=False):
        y, x = row[0].place.pixel
        side = 2 * reach + 1
        box = Rectangle((x - reach - 0.5, y - reach - 0.5), side, side, fill=False, lw=2, color=colour)
        box.set_path_effects(_outlined("black", 3.5))
        axes.add_patch(box)
        above = y - reach > 0.07 * image.shape[0]
        edge, align = (y - reach - 0.01 * image.shape[0], "bottom") if above else (y + reach, "top")
        style = {"fontsize": 15, "fontweight": "bold", "va": align, "path_effects": _outlined("black", 3)}
        axes.text(max(x - reach, 0), edge, row[0].place.letter, color=colour, **style)
    height, width = image.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _inset(axes: Any, image: Any) -> None:
    axes.imshow(image, interpolation="bicubic")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="white", linewidth=1.5)
    place = {"va": "top", "transform": axes.transAxes, "path_effects": _outlined("black", 2)}
    axes.text(0.05, 0.96, "to be learnt", color="white", fontsize=8.5, **place)


def _view(axes: Any, image: Any, sight: Sight, reach: float, colour: str) -> None:
    """Draw one field: the photograph dimmed, the heat, the points, and the place."""
    y, x = sight.place.pixel
    axes.set_facecolor("#101014")
    top, left = (max(0, int(p - reach) - 2) for p in (y, x))
    near = np.s_[top : int(y + reach) + 3, left : int(x + reach) + 3]
    for layer, smooth in ((DIM * image[near], "bicubic"), (_heat(sight.field[near]), "bilinear")):
        rows, columns = layer.shape[:2]
        axes.imshow(layer, interpolation=smooth, extent=(left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5))
    if len(sight.weights):
        crowd = min(1, (150 / len(sight.weights)) ** 0.5)
        size = np.maximum(9 * crowd * np.sqrt(sight.weights / sight.weights.max()), 0.4)
        axes.scatter(*sight.positions.T[::-1], s=size, color="white", linewidths=0, alpha=0.4 + 0.5 * crowd)
    axes.plot(x, y, "+", color=colour, ms=9, mew=1.8)
    if sight.goal is not None:
        axes.plot(*sight.goal[::-1], "o", ms=11, mew=1.3, mfc="none", color=colour)
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach), xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=1.8)


def _heat(field: NDArray[np.float64]) -> Any:
    """Return a field as a layer of colour that is transparent where it is 0."""
    share = np.sqrt(field / max(field.max(initial=0), np.finfo(float).tiny))
    layer = colormaps[GLOW](0.25 + 0.75 * share)
    layer[..., 3] = np.minimum(1, 1.6 * share)
    return layer
