"""``cudakit demo``: warp a photograph, check the result, and let two layers learn where to look.

A spatial transformer learns to undo a warp, a deformable convolution to look where another one does.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cudakit import reference
from cudakit.cli.command import Backend, UserError, choose_backend, make_console, require, to_numpy, whole
from cudakit.cli.learning import with_progress_bar
from cudakit.cli.photo import NEEDS, SMALLEST, SUFFIXES, Photo, check_picture, load_photo
from cudakit.cli.registration import (
    Outcome,
    Progress,
    corner_error,
    inverse,
    placement,
    register,
    warp,
    with_coverage,
)
from cudakit.sampling import affine_grid, affine_grid_backward, grid_sample, grid_sample_backward

LARGEST = 4096  # pixels along the longer side
TOLERANCE = 4 * float(np.finfo(np.float32).eps)  # times the longer side; see `show_warps`
SUCCESS = 1.0  # pixels at the corners
TIMING = 0.25  # seconds that one operator is timed for

# What is done to the photograph: degrees, zoom, shift.
WARPS: dict[str, tuple[float, float, tuple[float, float]]] = {
    "turned by 30 degrees": (30, 1, (0, 0)),
    "zoomed in to 180 %": (0, 1.8, (0, 0)),
    "zoomed out to 60 %": (0, 0.6, (0, 0)),
    "shifted right and up": (0, 1, (0.3, -0.2)),
    "all at once": (-40, 1.3, (-0.2, 0.1)),
}
# The one to learn: degrees, zoom along x and y, shift.
HIDDEN = (30.0, (0.68, 0.62), (0.03, -0.05))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--image", type=Path, metavar="PATH", help="photograph (default: one that Matplotlib ships)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to run (default: cuda where there is one)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        default=Path("cudakit-demo.png"),
        help=f"picture to write, the second one beside it: {', '.join(SUFFIXES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=whole(1, 100_000), metavar="N", default=300, help="steps of learning (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=whole(SMALLEST, LARGEST),
        metavar="N",
        default=320,
        help="pixels of the photograph's longer side (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and return the exit status."""
    require(NEEDS, "demo")
    from cudakit.cli import demo_offsets
    from cudakit.cli.demo_picture import draw

    check_picture(args.out)
    photo = load_photo(args.image, args.size)
    backend = choose_backend(args.device)
    console = make_console(highlight=False)
    height, width = photo.size
    console.print(f"{photo.name}, {width} × {height} pixels, on {backend.description}\n", markup=False)
    show_timings(console, photo, backend)
    agrees = show_warps(console, photo, backend)
    outcome = learn(console, photo, backend, args.steps)
    found = show_outcome(console, outcome)
    offsets = demo_offsets.learn(console, photo.pixels, backend, max(1, args.steps // 2))
    learnt = demo_offsets.show_outcome(console, offsets)
    second = args.out.with_stem(f"{args.out.stem}-offsets")
    try:
        draw(photo.pixels, outcome, backend, args.out)
        demo_offsets.draw(photo.pixels, offsets, second)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or args.out}: {error.strerror or error}") from None
    console.print(f"\nPictures: {args.out}, {second}", markup=False, soft_wrap=True)
    return 0 if agrees and found and learnt else 1


def show_timings(console: Any, photo: Photo, backend: Backend) -> None:
    """Time the four operators on the photograph and print a table."""
    from rich.table import Table

    xp, shape = backend.xp, photo.pixels.shape
    image = xp.asarray(photo.pixels)
    transform = placement(30, 0.8, (0.1, 0), photo.size)[None]
    theta, grid = (xp.asarray(a, xp.float32) for a in (transform, reference.affine_grid(transform, shape)))
    calls: dict[str, Callable[[], Any]] = {
        "affine_grid": lambda: affine_grid(theta, shape),
        "grid_sample": lambda: grid_sample(image, grid),
        "grid_sample_backward": lambda: grid_sample_backward(image, image, grid),
        "affine_grid_backward": lambda: affine_grid_backward(grid, shape),
    }
    table = Table("operator", box=None, pad_edge=False, title="Time of one call", title_justify="left")
    for column in ("first call", "median of the rest", "pixels per second"):
        table.add_column(column, justify="right")
    for name, call in calls.items():
        first, median = _time(call, backend)
        rate = shape[2] * shape[3] / median
        table.add_row(name, f"{first * 1e3:.0f} ms", f"{median * 1e3:.3f} ms", f"{rate / 1e6:.0f} million")
    console.print(table)
    console.print("The first call compiles the operator, or loads it from the cache.\n")


def _time(call: Callable[[], Any], backend: Backend) -> tuple[float, float]:
    """Return the seconds of the first call, and the median of as many as fit into `TIMING`."""
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds[1:]) < TIMING:
        backend.synchronize()
        start = time.perf_counter()
        call()
        backend.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(np.median(seconds[1:]))


def show_warps(console: Any, photo: Photo, backend: Backend) -> bool:
    """Warp the photograph in several ways at once; compare with the oracle, print and return whether they agree."""
    xp, n = backend.xp, len(WARPS)
    thetas = np.stack([inverse(placement(*warp, photo.size)) for warp in WARPS.values()]).astype(np.float32)
    batch = np.broadcast_to(photo.pixels, (n, *photo.pixels.shape[1:]))
    warped = to_numpy(grid_sample(xp.asarray(batch), affine_grid(xp.asarray(thetas), batch.shape)))
    expected = reference.grid_sample(batch, reference.affine_grid(thetas, batch.shape))
    # A coordinate of up to `side` pixels is rounded a few times, and pixels differ from their neighbours by 1 at most.
    allowed = TOLERANCE * max(photo.size)
    console.print("Warps against the float64 oracle (pixels run from 0 to 1)")
    for name, difference in zip(WARPS, np.abs(warped - expected).max((1, 2, 3)), strict=True):
        console.print(f"  {name:21}  largest difference {difference:.1e}")
    agrees = bool(np.abs(warped - expected).max() <= allowed)  # False for NaN
    verdict = "[green]They agree[/]" if agrees else "[bold red]They disagree[/]"
    console.print(f"{verdict}: rounding in float32 allows {allowed:.1e}.\n")
    return agrees


def learn(console: Any, photo: Photo, backend: Backend, steps: int) -> Outcome:
    """Hide a transform in the photograph and learn it back, with a progress bar."""
    true = placement(*HIDDEN, photo.size)
    fixed = with_coverage(backend.xp.asarray(photo.pixels), backend.xp)
    warped = warp(fixed, inverse(true), backend.xp)

    def error(step: Progress) -> float:
        return corner_error(step.theta, true, photo.size)

    def describe(step: Progress) -> str:
        return f"{step.stage.name:20}  loss {step.loss:.5f}  corners {error(step):6.2f} px off"

    console.print("A spatial transformer learns the transform that was hidden in the photograph")
    found = list(with_progress_bar(console, steps, register(warped, fixed, steps, backend.xp), describe))
    return Outcome(true, warped, found, [error(step) for step in found])


def show_outcome(console: Any, outcome: Outcome) -> bool:
    """Print the true and the recovered numbers and the error; return whether that is small."""
    from rich.table import Table

    recovered = outcome.steps[-1].theta
    table = Table("", "xx", "xy", "x", "yx", "yy", "y", box=None, pad_edge=False)
    rows = {"true": outcome.true, "recovered": recovered, "difference": recovered - outcome.true}
    for name, theta in rows.items():
        table.add_row(name, *(f"{number:+.5f}" for number in theta.flat))
    console.print(table)
    before, after = outcome.errors[0], outcome.errors[-1]
    found = after < SUCCESS
    verdict = "[green]Registered[/]" if found else "[bold red]Not registered[/]"
    console.print(f"{verdict}: the corners were {before:.1f} pixels off, now they are {after:.3f}.")
    if not found:
        console.print("More --steps may help, or a photograph with more to see in it.")
    return found
