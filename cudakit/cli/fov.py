"""``cudakit fov``: what plain, dilated and deformable convolutions and a spatial transformer see of a photograph."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cudakit.cli.command import UserError, make_console, require, whole
from cudakit.cli.fov_scene import Sight, given_scene, learnt_scene, look
from cudakit.cli.fov_stacks import Place
from cudakit.cli.photo import NEEDS, Photo, check_picture, load_photo

Floats = NDArray[np.float64]

LETTERS = "ABC"  # of the places; more would not fit on a page
DEEPEST, LARGEST_KERNEL = 6, 15
SIZE, LEARN_SIZE, SMALLEST, LARGEST = 512, 192, 64, 2048  # pixels along the photograph's longer side
STEPS = 100  # of learning
TITLE = "Spatial transformer or deformable convolution?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("image", type=Path, nargs="?", metavar="IMAGE", help="photograph (default: Matplotlib's)")
    parser.add_argument(
        "--at",
        type=_pixel,
        action="append",
        metavar="X,Y",
        help="place to look from, in pixels of the photograph as resized, up to 3 times (default: chosen)",
    )
    parser.add_argument(
        "--layers",
        type=_kernels,
        metavar="K[,K...]",
        default=(3, 3, 3),
        help="odd kernel sizes from the input to the output (default: 3,3,3)",
    )
    parser.add_argument(
        "--dilation", type=whole(1, 16), metavar="N", default=2, help="of the dilated stack (default: 2)"
    )
    _add_offsets(parser)
    parser.add_argument(
        "--size",
        type=whole(SMALLEST, LARGEST),
        metavar="N",
        help="pixels of the photograph's longer side (default: 512, with --learn 192)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        default=Path("cudakit-fov.png"),
        help="picture to write (default: %(default)s)",
    )
    parser.set_defaults(misused=parser.error)  # for what argparse has no rule


def _add_offsets(parser: argparse.ArgumentParser) -> None:
    """Add what says where offsets come from."""
    offsets = parser.add_mutually_exclusive_group()
    offsets.add_argument(
        "--offsets",
        type=Path,
        metavar="FILE.npy",
        help="offsets (2*K*K, H, W) of all layers, or (layers, 2*K*K, H, W) (default: from the picture's structure)",
    )
    offsets.add_argument(
        "--learn", action="store_true", help="learn offsets and transform: both see as through a swirl"
    )
    parser.add_argument(
        "--steps", type=whole(1, 100_000), metavar="N", help=f"steps of learning, with --learn (default: {STEPS})"
    )


def _pixel(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    if not (comma and x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be two whole numbers X,Y, got {text!r}")
    return int(y), int(x)


def _kernels(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    odd = all(size.isdecimal() and int(size) % 2 and int(size) <= LARGEST_KERNEL for size in sizes)
    if not odd or len(sizes) > DEEPEST:
        rule = f"must be up to {DEEPEST} odd kernel sizes of at most {LARGEST_KERNEL}, such as 3,3,3"
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
    return tuple(map(int, sizes))


def run(args: argparse.Namespace) -> int:
    """Compare the fields of view and return the exit status."""
    if args.steps is not None and not args.learn:
        args.misused("argument --steps: not allowed without argument --learn")
    require(NEEDS, "demo")
    check_picture(args.out)
    photo = load_photo(args.image, args.size or (LEARN_SIZE if args.learn else SIZE))
    console = make_console(highlight=False)
    places = _places(args.at, photo)
    if args.learn:
        scene = learnt_scene(photo, places, args.layers, args.dilation, args.steps or STEPS, console)
    else:
        offsets = None if args.offsets is None else load_offsets(args.offsets, args.layers, photo.size)
        file = "" if args.offsets is None else args.offsets.name
        scene = given_scene(photo, places, args.layers, args.dilation, offsets, file)
    rows = look(scene, photo.size)
    height, width = photo.size
    console.print(f"{photo.name}, {width} × {height} pixels\n{scene.subtitle}\n{scene.origin}\n", markup=False)
    show(console, rows)
    from cudakit.cli.fov_picture import (  # half of the time is Matplotlib's: the numbers need not wait for it
        Words,
        draw,
    )

    try:
        draw(photo.pixels, scene.target, rows, Words(TITLE, scene.subtitle), args.out)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or args.out}: {error.strerror or error}") from None
    console.print(f"\nPicture: {args.out}", markup=False, soft_wrap=True)
    return 0


def _places(pixels: Sequence[tuple[int, int]] | None, photo: Photo) -> list[Place]:
    """Check the places that were asked for."""
    if len(pixels or ()) > len(LETTERS):
        raise UserError(f"--at may be given up to {len(LETTERS)} times, got {len(pixels or ())}")
    height, width = photo.size
    for y, x in pixels or ():
        if y >= height or x >= width:
            raise UserError(f"--at must lie in the photograph, {width} × {height} pixels, got {x},{y}")
    return [Place(letter, "", pixel) for letter, pixel in zip(LETTERS, pixels or (), strict=False)]


def load_offsets(path: Path, kernels: Sequence[int], size: tuple[int, int]) -> list[Floats]:
    """Return the offsets (1, 2*K*K, H, W) of each layer, from a file."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "not an array that NumPy can read"
        raise UserError(f"cannot read {path}: {reason}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise UserError(f"{path} must hold one array of floats, got {getattr(found, 'dtype', 'several')}")
    if len(set(kernels)) > 1:
        raise UserError(f"--offsets needs --layers of one kernel size, got {','.join(map(str, kernels))}")
    one = (2 * kernels[0] ** 2, *size)
    if found.shape not in (one, (1, *one), (len(kernels), *one)):
        each = ", ".join(map(str, one))
        raise UserError(f"{path} must have shape ({each}) or ({len(kernels)}, {each}), got {found.shape}")
    layers = np.broadcast_to(found.astype(np.float64), (len(kernels), *one))
    return [layer[None] for layer in layers]


def show(console: Any, rows: Sequence[Sequence[Sight]]) -> None:
    """Print the numbers."""
    from rich.table import Table

    places = (row[0].place for row in rows)
    named = (f"{p.letter}: {p.what}{', ' if p.what else ''}at {p.pixel[1]},{p.pixel[0]}" for p in places)
    console.print("; ".join(named) + "\n", markup=False)
    table = Table("", "field of view", box=None, pad_edge=False)
    for column in ("centre x, y", "points", "diameter", "shape", "angle", "shared"):
        table.add_column(column, justify="right")
    for row in rows:
        for sight in row:
            y, x = sight.moments.centre
            centre = f"{x:.1f}, {y:.1f}" if sight.moments.mass else ""
            cells = (sight.place.letter, sight.stack.name, centre, str(len(sight.weights)))
            table.add_row(*cells, *sight.numbers, end_section=sight is row[-1])
    console.print(table)
    console.print(
        "\ndiameter: four standard deviations, in pixels; shape: the longest axis over the shortest; angle: of the "
        "longest, counter-clockwise from the x axis; shared: with the deformable stack's field. Of effective "
        "receptive fields."
    )
