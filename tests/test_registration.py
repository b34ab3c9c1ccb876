"""The registration of two pictures, which the demonstration shows."""

import numpy as np
import pytest

from cudakit.cli.registration import corner_error, inverse, placement, plan_stages, register, warp, with_coverage


def _photo(size: tuple[int, int]) -> np.ndarray:
    """Return something that looks like a photograph: blobs of every size and colour."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    picture = np.zeros((1, 3, *size))
    for radius in rng.uniform(0.04, 0.3, 60):
        blob = np.exp(-((x - rng.uniform(0, 1)) ** 2 + (y - rng.uniform(0, 1)) ** 2) / radius**2)
        picture += rng.normal(size=(1, 3, 1, 1)) * blob
    return ((picture - picture.min()) / np.ptp(picture)).astype(np.float32)


@pytest.mark.parametrize(
    "hidden",
    [(30, (0.68, 0.62), (0.03, -0.05)), (-40, 0.9, (0.2, 0.2)), (25, (1.2, 1.3), (0.15, 0.1)), (10, 0.55, (0, 0))],
)
def test_registration_recovers_the_transform(
    hidden: tuple[float, float | tuple[float, float], tuple[float, float]],
) -> None:
    size = (96, 80)
    true = placement(*hidden, size)
    fixed = with_coverage(_photo(size), np)
    *_, last = register(warp(fixed, inverse(true), np), fixed, 200, np)
    assert corner_error(last.theta, true, size) < 0.3


def test_transforms() -> None:
    size = (60, 80)
    theta = placement(30, (0.8, 1.1), (0.1, -0.2), size)
    square = np.vstack([theta, [0, 0, 1]]) @ np.vstack([inverse(theta), [0, 0, 1]])
    np.testing.assert_allclose(square, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(theta[:, :2]), 0.8 * 1.1)
    moved = theta + np.array([[0, 0, 0.1], [0, 0, 0.2]])  # 4 pixels to the right and 6 down
    assert corner_error(moved, theta, size) == pytest.approx(np.hypot(4, 6))


@pytest.mark.parametrize(("size", "steps"), [((320, 272), 300), ((32, 32), 7), ((33, 47), 1), ((1024, 32), 50)])
def test_stages_take_exactly_the_steps(size: tuple[int, int], steps: int) -> None:
    stages = plan_stages(size, steps)
    assert sum(stage.steps for stage in stages) == steps
    assert stages[-1].factor == 1
    assert all(side % stage.factor == 0 for side in size for stage in stages)
