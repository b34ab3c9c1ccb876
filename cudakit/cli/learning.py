"""What the demonstrations learn by: Adam, from blurred pictures to sharp ones, with a progress bar."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
T = TypeVar("T")

BETA1, BETA2 = 0.9, 0.99  # of Adam


class Stage(NamedTuple):
    """One stage: pictures made smaller by `factor`, then blurred by a Gaussian of `sigma` pixels.

    `rate` is the first step of every number, in pixels. Of stages that are yet to be scaled (`scale_stages`), `steps`
    are relative to one another.
    """

    rate: float
    steps: int
    sigma: float = 0.0
    factor: int = 1

    @property
    def name(self) -> str:
        """A short name."""
        return ("full size" if self.factor == 1 else f"1/{self.factor} size") + (", blurred" if self.sigma else "")


def scale_stages(stages: Sequence[Stage], steps: int) -> list[Stage]:
    """Return the stages with so many steps in all."""
    shares = [stage.steps for stage in stages]
    ends = np.cumsum(shares) * steps // sum(shares)
    lengths = np.diff(ends, prepend=0)
    return [stage._replace(steps=int(length)) for stage, length in zip(stages, lengths, strict=True)]


class Adam:
    """Adam (arXiv 1412.6980): steps along the mean gradient over the root of its mean square.

    Parameters
    ----------
    rate : float
        Of the first step. It falls along half a cosine, to 1 % after `steps`.
    steps : int
        How many there will be.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._total, self._steps = rate, steps, 0
        self._mean: Any = 0.0
        self._square: Any = 0.0

    def step(self, parameters: Floats, gradient: Floats) -> Floats:
        """Return the parameters after a step against the gradient."""
        done = self._steps / self._total
        rate = self._rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        self._steps += 1
        self._mean = BETA1 * self._mean + (1 - BETA1) * gradient
        self._square = BETA2 * self._square + (1 - BETA2) * gradient**2
        mean, square = self._mean / (1 - BETA1**self._steps), self._square / (1 - BETA2**self._steps)
        after: Floats = parameters - rate * (mean / (np.sqrt(square) + 1e-12))
        return after


def with_progress_bar(console: Any, total: int, steps: Iterable[T], describe: Callable[[T], str]) -> Iterator[T]:
    """Yield the steps, of which `total` follow the first, beside a bar with what `describe` says of the last."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        for done, step in enumerate(steps):
            bar.update(task, completed=done, description=describe(step))
            yield step


def blur(picture: Any, sigma: float, xp: Any) -> Any:
    """Return a picture (N, C, H, W) blurred by a Gaussian, black around it."""
    return _blur_axis(_blur_axis(picture, sigma, 2, xp), sigma, 3, xp)


def _blur_axis(picture: Any, sigma: float, axis: int, xp: Any) -> Any:
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = xp.pad(picture, [(reach, reach) if i == axis else (0, 0) for i in range(picture.ndim)])
    length = picture.shape[axis]
    parts = (float(weight) * xp.take(padded, xp.arange(i, i + length), axis) for i, weight in enumerate(weights))
    return sum(parts)
