"""The second act of ``cudakit demo``: where a deformable convolution looks, and how it learns to."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cudakit.cli.command import Backend
from cudakit.cli.learning import with_progress_bar
from cudakit.cli.offset_learning import TAPS, OffsetProgress, hidden_offsets, learn_offsets, tap_error

SUCCESS = 0.1  # pixels that every tap must come near
INK, FAINT, LOSS, ERROR, PLAIN, LEARNT = "#222222", "#777777", "#1f5fa8", "#d1495b", "#4cc9f0", "#ffb703"
WIDTH, HEIGHT, DPI = 12.0, 4.3, 110  # inches, dots per inch
CROP = 44  # pixels of the photograph that are shown, so that single taps can be seen
PLACES = ((11, 11), (11, 33), (22, 22), (33, 11), (33, 33))  # output pixels in it: y, x
DILATION = 2

Points = NDArray[np.float64]


def learn(console: Any, photo: NDArray[np.float32], backend: Backend, steps: int) -> list[OffsetProgress]:
    """Learn the offsets, with a progress bar."""

    def describe(step: OffsetProgress) -> str:
        return f"blur {step.sigma} px  loss {step.loss:.1e}  taps {tap_error(step.offsets):5.2f} px off"

    console.print("\nA deformable convolution learns where another one looks: its offsets start from zero")
    learning = learn_offsets(backend.xp.asarray(photo), steps, backend.xp)
    return list(with_progress_bar(console, steps, learning, describe))


def show_outcome(console: Any, found: list[OffsetProgress]) -> bool:
    """Print the loss and the error before and after; return whether the taps were found."""
    first, last = found[0], found[-1]
    after = tap_error(last.offsets)
    learnt = after < SUCCESS
    verdict = "[green]Learnt[/]" if learnt else "[bold red]Not learnt[/]"
    console.print(
        f"{verdict}: the worst tap was {tap_error(first.offsets):.2f} pixels off, now it is {after:.3f}; "
        f"the loss was {first.loss:.1e} on the blurred picture, now it is {last.loss:.1e} on the sharp one."
    )
    return learnt


def draw(photo: Any, found: list[OffsetProgress], out: Path) -> None:
    """Draw where plain, dilated and deformed kernels look, and how the offsets were learnt.

    Parameters
    ----------
    photo : array, shape (1, 3, H, W)
        The photograph.
    found : list of OffsetProgress
        The steps of learning.
    out : Path
        The file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, HEIGHT), dpi=DPI)
    figure.text(0.5, 0.97, "A deformable convolution learns where to look", **_centred(15, INK), fontweight="bold")
    result = (
        f"{len(found) - 1} steps bring the nine taps from {tap_error(found[0].offsets):.1f} pixels off "
        f"to {tap_error(found[-1].offsets):.3f} pixels"
    )
    figure.text(0.5, 0.885, result, **_centred(10.5, FAINT))
    shown, side = _crop(photo), 0.225
    kernels = {
        "plain 3 × 3": TAPS,
        f"dilated by {DILATION}": DILATION * TAPS,
        "deformed: learnt (rings: sought)": TAPS + found[-1].offsets,
    }
    for column, (title, taps) in enumerate(kernels.items()):
        axes = figure.add_axes((0.012 + column * (side + 0.01), 0.09, side, side * WIDTH / HEIGHT))
        axes.imshow(shown, interpolation="nearest", alpha=0.85)
        axes.set_title(title, fontsize=10, color=INK, pad=5)
        axes.set_axis_off()
        if column == 2:
            _paths(axes, [step.offsets + TAPS for step in found])
        _points(axes, taps, LEARNT if column == 2 else PLAIN)
        axes.set(xlim=(-0.5, shown.shape[1] - 0.5), ylim=(shown.shape[0] - 0.5, -0.5))
    _curves(figure.add_axes((0.775, 0.145, 0.165, 0.605)), found)
    figure.savefig(out)


def _centred(size: float, colour: str) -> dict[str, Any]:
    return {"ha": "center", "va": "top", "fontsize": size, "color": colour}


def _crop(photo: Any) -> Points:
    """Return a small piece around the upper middle, where portraits have their faces."""
    height, width = photo.shape[2:]
    y, x = (max(0, min(round(share * size) - CROP // 2, size - CROP)) for share, size in ((0.36, height), (0.5, width)))
    piece: Points = np.clip(np.moveaxis(photo[0, :, y : y + CROP, x : x + CROP], 0, -1), 0, 1)
    return piece


def _points(axes: Any, taps: Points, colour: str) -> None:
    """Draw the sampling points of a few output pixels, and these."""
    for place in PLACES:
        y, x = (taps + place).T
        axes.scatter(x, y, s=26, color=colour, edgecolors="black", linewidths=0.6, zorder=3)
        axes.scatter(*place[::-1], s=60, marker="+", color="white", linewidths=1.6, zorder=4)


def _paths(axes: Any, steps: list[Points]) -> None:
    """Draw the way of every tap from the plain kernel, and where the hidden one has them."""
    ways = np.stack(steps)  # (steps, tap, 2)
    for place in PLACES:
        for tap in range(len(TAPS)):
            y, x = (ways[:, tap] + place).T
            axes.plot(x, y, color="white", lw=1.1, alpha=0.9, zorder=2)
        y, x = (TAPS + hidden_offsets() + place).T
        axes.scatter(x, y, s=70, facecolors="none", edgecolors="white", linewidths=1.2, zorder=2)


def _curves(axes: Any, found: list[OffsetProgress]) -> None:
    """Draw the loss and the error of the taps, step by step."""
    errors = axes.twinx()
    for side, values, colour, label in (
        (axes, [step.loss for step in found], LOSS, "loss"),
        (errors, [tap_error(step.offsets) for step in found], ERROR, "worst tap, pixels off"),
    ):
        side.semilogy(values, color=colour, lw=1.5)
        side.set_ylabel(label, fontsize=9, color=colour)
        side.tick_params(axis="y", labelsize=8, colors=colour)
        side.tick_params(axis="x", labelsize=8, colors=FAINT)
        side.spines[:].set_color("#cccccc")
        side.margins(x=0)
    starts = [i for i, step in enumerate(found) if i == 0 or step.sigma != found[i - 1].sigma]
    for i in starts:
        text = f"blur {found[i].sigma:g} px" if found[i].sigma else "sharp"
        place = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "left", "rotation": 30}
        axes.text(i, 1.01, text, fontsize=7.5, color=FAINT, **place)
        axes.axvline(i, color="#dddddd", lw=0.8, zorder=0)
    axes.set_xlabel("step", fontsize=9, color=FAINT, labelpad=1)
