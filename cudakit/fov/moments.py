"""Fields of view in numbers: size, centre, shape, and how much two of them share."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudakit.errors import InvalidArgument, raised_by
from cudakit.fov.arrays import Floats, read


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of a field of view.

    Attributes
    ----------
    mass : float
        The sum of the weights.
    centre : ndarray, shape (n,)
        Their centre in pixels, y before x; NaN for a field without mass.
    covariance : ndarray, shape (n, n)
        Their second moments about the centre, in square pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from cudakit.fov import moments
    >>> found = moments(np.outer([1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]))
    >>> found.mass, found.centre, found.axes**2, round(found.elongation, 3)
    (20.0, array([1., 2.]), array([2. , 0.5]), 2.0)
    """

    mass: float
    centre: Floats
    covariance: Floats

    @property
    def axes(self) -> Floats:
        """Standard deviations along the principal axes in pixels, the longest first, shape (n,)."""
        found: Floats = np.sqrt(np.maximum(np.linalg.eigvalsh(self.covariance)[::-1], 0))
        return found

    @property
    def directions(self) -> Floats:
        """Unit vectors (n, n) of the principal axes, one in each row, the longest first."""
        found: Floats = np.linalg.eigh(self.covariance)[1].T[::-1]
        return found

    @property
    def size(self) -> float:
        """Diameter in pixels: four standard deviations, by the geometric mean of the axes.

        Within two standard deviations lies the part of a normal distribution that arXiv 1701.04128 counts as the field.
        """
        return float(4 * np.prod(self.axes) ** (1 / len(self.axes)))

    @property
    def elongation(self) -> float:
        """The longest axis over the shortest: 1 for a round field."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.axes[0] / self.axes[-1])

    @property
    def angle(self) -> float:
        """Degrees from the x axis to the longest axis as one sees them, counter-clockwise, in (-90, 90]; for n = 2."""
        if len(self.centre) != 2:
            raise ValueError(f"Moments.angle: centre must have 2 dimensions, got {len(self.centre)}")
        y, x = self.directions[0]
        degrees = math.degrees(math.atan2(-y, x))  # y points down
        return degrees - 180 * math.ceil(degrees / 180 - 0.5)


def moments(weights: Any, positions: Any = None) -> Moments:
    """Return size, centre and shape of a field of view.

    Parameters
    ----------
    weights : array, shape (S...) or (P,)
        An effective receptive field; or the weights of `positions`. Not negative.
    positions : array, shape (P, n), optional
        As `sampling_positions` returns them.

    Returns
    -------
    Moments

    Raises
    ------
    ValueError
        If a shape does not fit, or weights are negative or not finite.
    TypeError
        If something is no floating array.

    Examples
    --------
    >>> from cudakit.fov import Conv, moments, sampling_positions
    >>> positions, weights = sampling_positions([Conv(padding=1)] * 3, (32, 32), (9, 20))
    >>> found = moments(weights, positions)
    >>> found.centre, found.axes**2, round(found.size, 2)  # each layer adds 2/3 of a square pixel
    (array([ 9., 20.]), array([2., 2.]), 5.66)
    """
    with raised_by("moments"):
        values = _field("weights", weights)
        if positions is None:
            if values.ndim not in (1, 2, 3):
                raise InvalidArgument("weights", "have 1, 2 or 3 dimensions", f"shape {values.shape}")
            kept = np.nonzero(values)
            places, values = np.stack(kept, 1).astype(np.float64), values[kept]
        else:
            places = read("positions", positions)[0]
            if places.ndim != 2 or values.shape != places.shape[:1]:
                rule = "have shape (P, n) beside weights of shape (P,)"
                raise InvalidArgument("positions", rule, f"{places.shape} beside {values.shape}")
    return _moments(values, places)


def _moments(values: Floats, places: Floats) -> Moments:
    mass, n = float(values.sum()), places.shape[1]
    if mass == 0:
        return Moments(0.0, np.full(n, np.nan), np.full((n, n), np.nan))
    share = values / mass
    centre = share @ places
    away = places - centre
    return Moments(mass, centre, (share * away.T) @ away)


def overlap(first: Any, second: Any) -> float:
    """Return how much two fields share: ``sum of min(p, q)``, each scaled to the sum 1.

    Parameters
    ----------
    first, second : array, shape (S...)
        Effective receptive fields over the same input.

    Returns
    -------
    float
        1 for fields that differ by a factor alone, 0 for fields that have no pixel in common, or no mass.

    Raises
    ------
    ValueError, TypeError
        As for `moments`.

    Examples
    --------
    >>> import numpy as np
    >>> from cudakit.fov import overlap
    >>> overlap(np.array([1.0, 1.0, 0.0]), np.array([0.0, 2.0, 2.0]))
    0.5
    """
    with raised_by("overlap"):
        p, q = _field("first", first), _field("second", second)
        if p.shape != q.shape:
            raise InvalidArgument("second", f"have the shape of first, {p.shape}", q.shape)
    if not p.sum() or not q.sum():
        return 0.0
    return float(np.minimum(p / p.sum(), q / q.sum()).sum())


def _field(argument: str, weights: Any) -> Floats:
    values, _ = read(argument, weights)
    wrong = values[~((values >= 0) & (values < np.inf))]
    if wrong.size:
        raise InvalidArgument(argument, "be finite and not negative", wrong[0])
    return values
