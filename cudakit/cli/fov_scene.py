"""What ``cudakit fov`` compares: stacks of layers, places in a photograph, and what the stacks see from there."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cudakit.cli.fov_learning import (
    RADIUS,
    Learning,
    difference,
    learn_offsets,
    learn_transform,
    smooth,
    swirl,
    swirled,
)
from cudakit.cli.fov_stacks import (
    Place,
    Stack,
    choose_places,
    convolutions,
    deformable,
    matching_transformer,
    steered_offsets,
    steering,
)
from cudakit.cli.learning import with_progress_bar
from cudakit.cli.photo import Photo
from cudakit.cli.registration import warp
from cudakit.fov import Moments, SpatialTransformer, effective_receptive_field, moments, overlap, sampling_positions

Floats = NDArray[np.float64]
Pixel = tuple[float, float]

DEFORMABLE = 2  # which stack the others are compared with
REPEATS = 20  # random networks that a field is averaged over, as in arXiv 1701.04128
ROUND = 1.25  # long : short axis; the direction of less is chance


class Scene(NamedTuple):
    """What is compared, in a line, and where offsets and transform come from.

    Where the stacks have learnt something, with the picture that they should have made.
    """

    stacks: list[Stack]
    places: list[Place]
    subtitle: str
    origin: str
    target: Any = None


class Sight(NamedTuple):
    """What the unit of a stack that looks at a place sees; `shared` is the overlap with the deformable field."""

    place: Place
    stack: Stack
    positions: Floats
    weights: Floats
    field: Floats
    moments: Moments
    shared: float = 1.0
    goal: Pixel | None = None

    @property
    def numbers(self) -> tuple[str, str, str, str]:
        """Diameter, shape, angle and shared part, to be read."""
        found = self.moments
        if not found.mass:
            return "nothing", "", "", ""
        angle = f"{found.angle:.0f}°".replace("-", "−") if found.elongation > ROUND else "–"
        return f"{found.size:.1f}", f"{found.elongation:.1f} : 1", angle, f"{100 * self.shared:.0f} %"


def look(scene: Scene, size: tuple[int, int]) -> list[list[Sight]]:
    """Return what is seen from each place, by each stack."""
    rows = []
    for place in scene.places:
        row = [_sight(stack, place, size) for stack in scene.stacks]
        goal = None if scene.target is None else swirl(*place.pixel, size)
        reference = row[DEFORMABLE].field
        rows.append([sight._replace(shared=overlap(sight.field, reference), goal=goal) for sight in row])
    return rows


def _sight(stack: Stack, place: Place, size: tuple[int, int]) -> Sight:
    unit = stack.unit(place.pixel)
    positions, weights = sampling_positions(stack.layers, size, unit)
    field = effective_receptive_field(stack.layers, size, unit, repeats=REPEATS)
    return Sight(place, stack, positions, weights, field, moments(field))


def plain_stacks(kernels: Sequence[int], dilation: int, size: tuple[int, int]) -> list[Stack]:
    """Return the plain stack and the dilated one."""
    return [
        Stack("plain", layers_of(kernels), convolutions(kernels), size),
        Stack("dilated", f"the same, by {dilation}", convolutions(kernels, dilation), size),
    ]


def layers_of(kernels: Sequence[int]) -> str:
    """Return in words what layers there are."""
    sizes = ", ".join(f"{kernel} × {kernel}" for kernel in (kernels[:1] if len(set(kernels)) == 1 else kernels))
    return f"{len(kernels)} layer{'s'[: len(kernels) != 1]} of {sizes}"


def given_scene(
    photo: Photo, places: list[Place], kernels: Sequence[int], dilation: int, offsets: list[Floats] | None, file: str
) -> Scene:
    """Return the scene for offsets from a file, or else from the photograph's structure.

    The transform gives plain layers the moments of the deformable field at the first place: there the two are as equal
    as they can be.
    """
    steer = steering(photo.pixels)
    note, origin = f"offsets from {file}", f"The offsets come from {file}"
    if offsets is None:
        by_kernel = {kernel: steered_offsets(steer, kernel) for kernel in set(kernels)}
        offsets, note = [by_kernel[kernel] for kernel in kernels], "offsets from image structure"
        origin = (
            "The offsets are not learnt but set from the photograph's structure tensor: it keeps taps together across "
            "edges and spreads them elsewhere"
        )
    places = places or choose_places(steer)
    layers, first = deformable(offsets, kernels), places[0]
    moved = Stack("deformable", note, layers, photo.size)
    warped, fits = matching_transformer(layers, kernels, first.pixel, photo.size, first.letter)
    paths = int(np.prod([kernel**2 for kernel in kernels]))
    subtitle = (
        f"What one unit sees through {layers_of(kernels)}, {paths} paths. Offsets give every place a field of its own; "
        "one transform gives all places the same."
    )
    stacks = [*plain_stacks(kernels, dilation, photo.size), moved, warped]
    return Scene(stacks, places, subtitle, f"{origin}. {fits}")


def learnt_scene(
    photo: Photo, places: list[Place], kernels: Sequence[int], dilation: int, steps: int, console: Any
) -> Scene:
    """Return the scene of stacks that have learnt to see the photograph as through a swirl, with a progress bar."""
    target = swirled(photo.pixels)
    wanted = smooth(target, kernels)
    theta = learn_transform(photo.pixels, target, steps)
    learning = learn_offsets(photo.pixels, target, kernels, steps)
    *_, last = with_progress_bar(console, steps, learning, _describe)
    plain, dilated = plain_stacks(kernels, dilation, photo.size)
    off = difference(smooth(photo.pixels, kernels), wanted)
    best = difference(smooth(warp(photo.pixels, theta, np), kernels), wanted)
    warp_layers = [SpatialTransformer(theta[None]), *convolutions(kernels)]
    stacks = [
        plain._replace(note=f"{plain.note}: off by {off:.3f}"),
        dilated,
        Stack("deformable", f"learnt: off by {last.difference:.3f}", deformable(last.offsets, kernels), photo.size),
        Stack("spatial transformer", f"learnt: off by {best:.3f}", warp_layers, photo.size),
    ]
    subtitle = (
        f"Each learns to see the photograph as through a swirl: one transform stays off by {best:.3f} "
        f"(pixels are 0 to 1), offsets by {last.difference:.3f}."
    )
    origin = (
        f"Offsets and θ are learnt in {steps} steps of gradient descent each, from zero and from the identity; "
        "the layers' weights are binomial and fixed. Differences are roots of mean squares."
    )
    return Scene(stacks, places or swirl_places(photo), subtitle, origin, target)


def _describe(step: Learning) -> str:
    return f"blur {step.sigma} px  off by {step.difference:.3f}"


def swirl_places(photo: Photo) -> list[Place]:
    """Return places with something to see: where the swirl shears most, where it only turns, where it does little."""
    steer, size = steering(photo.pixels), photo.size
    away = (
        np.hypot(*(np.indices(size) - np.array([(side - 1) / 2 for side in size])[:, None, None])) / RADIUS / min(size)
    )
    inside = np.zeros(size, bool)
    inside[tuple(slice(side // 12, side - side // 12) for side in size)] = True
    zones = {"sheared": np.abs(away - 2**0.5) < 0.2, "turned": away < 0.25, "left alone": away > 2.6}
    found = []
    for letter, (what, zone) in zip("ABC", zones.items(), strict=True):
        spacing = np.where(zone & inside, steer[0, 0] + steer[1, 1], np.inf)
        y, x = np.unravel_index(int(spacing.argmin()), size)
        found.append(Place(letter, what, (int(y), int(x))))
    return found
