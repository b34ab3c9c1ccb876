"""The picture that ``cudakit demo`` writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cudakit.command import Backend, to_numpy
from cudakit.registration import COLOURS, FULLY_SEEN, IDENTITY, Progress, Transform, warp

if TYPE_CHECKING:
    from cudakit.demo import Outcome

WIDTH, DPI = 10.0, 110  # inches, dots per inch
INK, FAINT, LOSS, ERROR = "#222222", "#888888", "#1f5fa8", "#d1495b"
NO_DATA = "#d8d8d8"
BRIGHTEST = 0.7  # the difference that is drawn brightest
OUTLINES = 7  # boxes drawn along the way

Image = NDArray[np.float64]


def draw(photo: Any, outcome: "Outcome", backend: Backend, out: Path) -> None:
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
    recovered = to_numpy(warp(outcome.warped, outcome.steps[-1].theta, backend.xp))
    original, warped = _image(photo), _image(to_numpy(outcome.warped))
    height, width = original.shape[:2]
    panel = WIDTH / 3 * 0.94
    figure = Figure((WIDTH, 2 * (panel * height / width + 0.45) + 0.75), dpi=DPI, layout="constrained")
    figure.suptitle("A spatial transformer learns to undo a warp", fontsize=15, fontweight="bold", color=INK)
    axes = figure.subplots(2, 3)
    _show(axes[0, 0], original, "Original")
    _show(axes[0, 1], warped, "Warped, and the box being learnt")
    _outlines(axes[0, 1], outcome)
    _show(axes[0, 2], _image(recovered), "Recovered")
    unseen = recovered[0, COLOURS] <= FULLY_SEEN
    before = _difference(warped, original, np.zeros_like(unseen))
    after = _difference(_image(recovered), original, unseen)
    _show_difference(figure, axes[1, 0], before, "before")
    _show_difference(figure, axes[1, 1], after, "after")
    _curves(axes[1, 2], outcome)
    figure.savefig(out)


def _image(pixels: Any) -> Image:
    """Return (1, C, H, W) as Matplotlib takes it, without the coverage."""
    image: Image = np.clip(np.moveaxis(pixels[0, :COLOURS], 0, -1).astype(np.float64), 0, 1)
    return image


def _show(axes: Any, image: Any, title: str, **options: Any) -> Any:
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_axis_off()
    return axes.imshow(image, **options)


def _difference(image: Image, original: Image, unseen: NDArray[np.bool_]) -> Any:
    """Return the mean difference of the colours; pixels that the warp had pushed out of the picture are masked."""
    return np.ma.masked_array(np.abs(image - original).mean(2), unseen)


def _show_difference(figure: Any, axes: Any, difference: Any, when: str) -> None:
    colours = colormaps["magma"].with_extremes(bad=NO_DATA)
    title = f"Difference {when}: mean {difference.mean():.3f}"
    shown = _show(axes, difference, title, cmap=colours, vmin=0, vmax=BRIGHTEST)
    bar = figure.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.04, pad=0.02, aspect=40, extend="max")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2, colors=FAINT)


def _outlines(axes: Any, outcome: "Outcome") -> None:
    """Draw where the original's frame is thought to lie in the warped picture, from the first step to the last."""
    height, width = outcome.warped.shape[2:]
    levels = np.geomspace(outcome.errors[0], max(outcome.errors[-1], 1.0), OUTLINES)
    chosen = [next((i for i, error in enumerate(outcome.errors) if error <= level), -1) for level in levels[1:-1]]
    for step in chosen:
        axes.plot(*_frame(outcome.steps[step].theta, height, width), color="white", lw=0.8, alpha=0.5)
    axes.plot(*_frame(IDENTITY, height, width), color="white", lw=1.4, ls=(0, (4, 3)), label="first step")
    axes.plot(*_frame(outcome.steps[-1].theta, height, width), color="#ffd23f", lw=1.8, label="last step")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    legend = axes.legend(loc="lower right", fontsize=7.5, frameon=True, facecolor="black", framealpha=0.6)
    legend.get_frame().set_linewidth(0)
    for text in legend.get_texts():
        text.set_color("white")


def _frame(theta: Transform, height: int, width: int) -> tuple[Any, Any]:
    """Return the pixel coordinates x, y of the closed outline of the frame under a transform."""
    corners = np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], [1, 1, 1, 1, 1]])
    x, y = theta @ corners
    return ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2


def _curves(axes: Any, outcome: "Outcome") -> None:
    """Draw the loss and the error of the corners, step by step, with the stages as bands."""
    height, width = outcome.warped.shape[2:]
    axes.set_title("Learning", fontsize=11, color=INK)
    axes.set_box_aspect(height / width)
    steps = range(len(outcome.steps))
    axes.semilogy(steps, [step.loss for step in outcome.steps], color=LOSS, lw=1.6)
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.set_ylabel("loss: mean squared difference", fontsize=9, color=LOSS)
    errors = axes.twinx()
    errors.set_box_aspect(height / width)
    errors.semilogy(steps, outcome.errors, color=ERROR, lw=1.6)
    errors.set_ylabel("error of the corners, pixels", fontsize=9, color=ERROR)
    for side, colour in ((axes, LOSS), (errors, ERROR)):
        side.tick_params(labelsize=8, colors=FAINT)
        side.tick_params(axis="y", which="both", colors=colour)
        side.spines[:].set_color("#cccccc")
        side.set_xlim(0, len(outcome.steps) - 1)
    _stages(axes, outcome.steps)


def _stages(axes: Any, steps: list[Progress]) -> None:
    """Shade every other stage and write its name at the top."""
    starts = [i for i, step in enumerate(steps) if i == 0 or step.stage != steps[i - 1].stage]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(steps) - 1], strict=True)):
        if number % 2 == 0:
            axes.axvspan(start, end, color="#f0f0f0", lw=0, zorder=0)
        axes.text(
            (start + end) / 2,
            0.985,
            steps[start].stage.name,
            transform=axes.get_xaxis_transform(),
            rotation=90,
            fontsize=7.5,
            color=FAINT,
            ha="center",
            va="top",
        )
