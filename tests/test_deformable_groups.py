"""Groups of a convolution: few or many, which a CPU joins, and what they must not see of each other."""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import Arrays
from .deformable_problems import Geometry, Problem, call, check, draw
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


SMALL = [  # channels, groups, outputs of a group, offset groups
    pytest.param((128, 32, 4, 1), id="four channels"),
    pytest.param((64, 8, 8, 2), id="eight channels, two offset groups"),
    pytest.param((96, 4, 24, 1), id="groups that vectors of channels cut"),
    pytest.param((96, 16, 16, 3), id="six channels, three offset groups"),
    pytest.param((32, 16, 13, 1), id="two channels"),
    pytest.param((64, 1, 3, 2), id="one group, three outputs"),
    pytest.param((64, 2, 35, 1), id="two groups, a few more outputs than a vector has"),
    pytest.param((64, 16, 5, 1), id="odd outputs of four channels"),
]


def small_groups(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, int, int, int], space: tuple[int, int], dtype: str
) -> Problem:
    """Return a problem with those channels, groups, outputs of a group and offset groups."""
    channels, groups, outputs, offset_groups = sizes
    geometry = Geometry(space, (3, 3), padding=1, channels=channels, groups=groups, offset_groups=offset_groups)
    return draw(rng, geometry._replace(out_channels=groups * outputs), dtype).on(arrays, dtype)


@pytest.mark.parametrize("operator", CONVOLUTIONS)
@pytest.mark.parametrize("sizes", SMALL)
@pytest.mark.parametrize("space", [(11, 13), (3, 7), (2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_small_groups(
    arrays: Arrays,
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int],
    space: tuple[int, int],
    dtype: str,
    operator: str,
) -> None:
    check(arrays, operator, small_groups(arrays, rng, sizes, space, dtype), dtype)


@pytest.mark.parametrize("sizes", SMALL)
def test_threads_change_no_bit_of_small_groups(
    arrays: Arrays, rng: np.random.Generator, threads: None, sizes: tuple[int, int, int, int]
) -> None:
    made = small_groups(arrays, rng, sizes, (11, 13), "float32")
    results = []
    for number in (1, 2, 5):
        cudakit.set_num_threads(number)
        results.append(arrays.back(call("deform_conv", made)["output"]))
        np.testing.assert_array_equal(results[-1], results[0])


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
@pytest.mark.parametrize("size", [2, 4])
def test_what_is_not_finite_stays_in_its_group(
    arrays: Arrays, rng: np.random.Generator, size: int, dtype: str, where: str, value: float
) -> None:
    problem = draw(rng, WIDE._replace(channels=8 * size, groups=8, out_channels=8 * size), dtype)
    bad = np.array(getattr(problem, where))
    of_third = (2 * size,) if where == "weight" else (0, 2 * size)
    bad[of_third].reshape(-1)[-1] = value  # in the last tile
    problem = problem._replace(**{where: bad})
    together = run(arrays, problem, dtype)
    alone = [run(arrays, of_group(problem, group), dtype) for group in range(8)]
    for name, values in together.items():
        expected = np.concatenate([found[name] for found in alone], axis=1 if name in ("input", "output") else 0)
        finite = np.isfinite(expected)
        assert (np.isfinite(values) == finite).all(), name
        assert_close(np.where(finite, values, 0), np.where(finite, expected, 0), dtype)
    assert not all(np.isfinite(values).all() for values in together.values())
