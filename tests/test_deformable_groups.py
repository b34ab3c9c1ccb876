"""Groups of a convolution: few or many, which a CPU joins, and what they must not see of each other."""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import Arrays
from .deformable_problems import Geometry, Problem, check, draw
from .tolerances import assert_close

CONVOLUTIONS = ("deform_conv", "deform_conv_backward")
WIDE = Geometry((11, 13), (3, 3), padding=1)  # more than one tile


@pytest.mark.parametrize("operator", CONVOLUTIONS)
@pytest.mark.parametrize("offset_groups", [1, 3, 8])
@pytest.mark.parametrize("outputs", [1, 2, 5])  # of a group
@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (24, 2), (24, 8), (24, 24), (48, 8)])
def test_any_number_of_groups(
    arrays: Arrays,
    rng: np.random.Generator,
    channels: int,
    groups: int,
    outputs: int,
    offset_groups: int,
    operator: str,
) -> None:
    sizes = {"channels": channels, "groups": groups, "out_channels": groups * outputs, "offset_groups": offset_groups}
    check(arrays, operator, draw(rng, WIDE._replace(**sizes)).on(arrays))


@pytest.mark.parametrize("operator", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("groups", [37, 64, 80])
def test_a_group_for_every_channel(
    arrays: Arrays, rng: np.random.Generator, groups: int, dtype: str, operator: str
) -> None:
    geometry = WIDE._replace(channels=groups, groups=groups, out_channels=groups)
    check(arrays, operator, draw(rng, geometry, dtype).on(arrays, dtype), dtype)


def of_group(problem: Problem, group: int) -> Problem:
    """Return the part of a problem that one group of the convolution sees."""
    geometry = problem.geometry
    channels, outputs = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    mine, its = (slice(group * count, (group + 1) * count) for count in (channels, outputs))
    return problem._replace(
        input=problem.input[:, mine],
        weight=problem.weight[its],
        bias=problem.bias[its],
        output=problem.output[:, its],
    )


def run(arrays: Arrays, problem: Problem, dtype: str) -> dict[str, Any]:
    """Return the output and the gradients that belong to one group alone."""
    p = problem.on(arrays, dtype)
    places = {"padding": p.geometry.padding, "mask": p.mask}
    found = cudakit.deform_conv2d_backward(p.output, p.input, p.offset, p.weight, p.bias, **places)._asdict()
    found["output"] = cudakit.deform_conv2d(p.input, p.offset, p.weight, p.bias, **places)
    return {name: arrays.back(found[name]) for name in ("output", "input", "weight", "bias")}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["input", "weight", "output"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_stays_in_its_group(
    arrays: Arrays, rng: np.random.Generator, dtype: str, where: str, value: float
) -> None:
    problem = draw(rng, WIDE._replace(channels=16, groups=8, out_channels=16), dtype)
    bad = np.array(getattr(problem, where))
    bad[(4,) if where == "weight" else (0, 4)].reshape(-1)[-1] = value  # of the third group, in the last tile
    problem = problem._replace(**{where: bad})
    together = run(arrays, problem, dtype)
    alone = [run(arrays, of_group(problem, group), dtype) for group in range(8)]
    for name, values in together.items():
        expected = np.concatenate([found[name] for found in alone], axis=1 if name in ("input", "output") else 0)
        finite = np.isfinite(expected)
        assert (np.isfinite(values) == finite).all(), name
        assert_close(np.where(finite, values, 0), np.where(finite, expected, 0), dtype)
    assert not all(np.isfinite(values).all() for values in together.values())
