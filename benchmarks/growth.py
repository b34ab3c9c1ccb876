"""How the time of a deformable convolution grows with each of its sizes."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import nan
from typing import Any, NamedTuple

from cudakit.cpuinfo import core_count

from . import gpu
from .cases import OURS
from .deformable import FAMILY, Deform, row
from .measure import CPU, Device, Effort, Result, check, interleaved, summary
from .memory import keep_freed
from .peers import forget_libraries, set_threads, title
from .progress import progress
from .tables import NOTHING, Table, in_words, number

TITLE = "How the time of a deformable convolution grows"
BASE = Deform((1, 64, 56, 56), 64)
GPU_BASE = Deform((16, 64, 56, 56), 64)
SMALL_BASE = Deform((1, 8, 6, 6), 8)
SIDES = (*FAMILY.rivals, "dense_conv")
EFFORT = Effort(rounds=2, fewest=1, seconds=0.25)
WAYS = ("forward", "backward")


class Axis(NamedTuple):
    """What grows: its name, its values, and the base case with one of them."""

    name: str
    values: Sequence[float]
    change: Callable[[Deform, Any], Deform]


def powers(most: int) -> tuple[int, ...]:
    """Return the powers of two below a number, and that."""
    return (*(2**i for i in range(most.bit_length()) if 2**i < most), most)


THREADS = Axis("threads", powers(core_count()), lambda case, _: case)
AXES = (
    Axis("batch", (1, 2, 4, 8), lambda case, value: case._replace(shape=(value, *case.shape[1:]))),
    Axis(
        "channels, in and out",
        (16, 32, 64, 128, 256),
        lambda case, value: case._replace(shape=(case.shape[0], value, *case.shape[2:]), outputs=value),
    ),
    Axis(
        "side of the image in pixels",
        (14, 28, 56, 112),
        lambda case, value: case._replace(shape=(*case.shape[:2], value, value)),
    ),
    Axis("side of the kernel", (1, 3, 5, 7), lambda case, value: case._replace(kernel=value)),
    Axis(
        "standard deviation of offsets in pixels",
        (0, 1, 4, 16, 64),
        lambda case, value: case._replace(spread=value),
    ),
)


def point(case: Deform, threads: int, peers: Sequence[str], device: Device) -> Result:
    """Return the median milliseconds of every side, and what is wrong with sides."""
    set_threads(threads)
    this = row("growth", case)
    checked = check(FAMILY.only(peers), this, device.copies(this), threads, device)
    times = interleaved(checked.calls, device, EFFORT)
    # Without a spread every sample is at a knot, where slopes are a convention.
    wrong = checked.wrong if case.spread or not case.backward else {}
    return {"ms": {side: summary(turns)["median_ms"] for side, turns in times.items()}, "wrong": wrong}


def curves(base: Deform, threads: int, peers: Sequence[str], axes: Sequence[Axis], device: Device) -> list[Result]:
    """Measure every way along every axis."""
    work = list(product(WAYS, axes))
    points: list[list[Result]] = []
    with progress() as bar:
        task = bar.add_task("growth", total=sum(len(axis.values) for _, axis in work))
        for way, axis in work:
            points.append([])
            for value in axis.values:
                bar.update(task, description=f"growth, {way}: {axis.name} {value}")
                case = axis.change(base, value)._replace(backward=way == "backward")
                try:
                    found = point(case, int(value) if axis is THREADS else threads, peers, device)
                except Exception as error:  # cudakit's own; the other points are worth having
                    found = {"ms": {}, "wrong": {OURS: f"{type(error).__name__}: {error}"}}
                points[-1].append({"value": value} | found)
                bar.console.print(f"{way}, {axis.name} {value}: {found['ms'].get(OURS, nan):.3f} ms")
                bar.advance(task)
    return [{"way": way, "axis": axis.name, "points": all_of} for (way, axis), all_of in zip(work, points, strict=True)]


def complaints(results: Result) -> list[str]:
    """Return a line for every side that failed or computes something else."""
    every = ((curve, found) for curve in results["curves"] for found in curve["points"])
    return [
        f"growth, {curve['way']}: {curve['axis']} {found['value']:g}: {title(side)}: {message}"
        for curve, found in every
        for side, message in found["wrong"].items()
    ]


def measure(where: str, threads: int, peers: Sequence[str], small: bool) -> Result:
    """Measure every curve; the number of threads grows on a CPU only."""
    base = SMALL_BASE if small else GPU_BASE if where == "cuda" else BASE
    on_gpu = where == "cuda"
    keep_freed()
    sides = [side for side in SIDES if side in peers and (side in FAMILY.on_tensors or not on_gpu)]
    axes = AXES if on_gpu else (*AXES, THREADS)
    forget_libraries(sides)
    found = curves(base, threads, sides, axes, gpu.device() if on_gpu else CPU)
    return {"where": "the GPU" if on_gpu else in_words(threads), "base": base._asdict(), "curves": found}


def constants(results: Result) -> str:
    """Return what stays the same along the curves."""
    batch, channels, *space = results["base"]["shape"]
    return (
        f"On {results['where']}. One thing varies at a time; the rest is batch {batch}, {channels} channels in and "
        f"out, {space[0]}×{space[1]} pixels, a kernel of 3×3, padding 1, a mask, offsets with a standard deviation of "
        f"{results['base']['spread']:g} pixels, float32."
    )


def notes(results: Result) -> list[str]:
    """Return what the tables show."""
    return [
        f"Median milliseconds. {constants(results)}",
        "Dense convolution samples nothing: it is a floor.",
    ]


def tables(results: Result) -> Iterator[Table]:
    """Yield a table for each curve."""
    for curve in results["curves"]:
        sides = [side for side in (OURS, *SIDES) if any(side in point["ms"] for point in curve["points"])]
        cells = [
            [f"{point['value']:g}", *(number(point["ms"][side]) if side in point["ms"] else NOTHING for side in sides)]
            for point in curve["points"]
        ]
        yield f"{curve['axis'].capitalize()}: {curve['way']}", [curve["axis"], *map(title, sides)], cells
