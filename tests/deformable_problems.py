"""Random problems of the deformable operators that their tests share."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cudakit import reference

from .tolerances import Floats, offsets_away_from_knots, rounded

Numbers = int | Sequence[int]


class Geometry(NamedTuple):
    """Everything about a problem but its numbers."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: Numbers = 1
    padding: Numbers = 0
    dilation: Numbers = 1
    offset_groups: int = 1
    groups: int = 1
    batch: int = 2
    channels: int = 4
    out_channels: int = 4
    masked: bool = True
    biased: bool = True

    @property
    def n(self) -> int:
        """Number of spatial dimensions."""
        return len(self.sizes)

    @property
    def taps(self) -> int:
        """K, the number of kernel indices."""
        return prod(self.kernel)

    @property
    def places(self) -> tuple[Numbers, Numbers, Numbers]:
        """Stride, padding and dilation: consecutive arguments of every operator."""
        return self.stride, self.padding, self.dilation

    @property
    def out(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        return reference.deform_output_size(self.sizes, self.kernel, *self.places)


class Problem(NamedTuple):
    """Random arguments of every deformable operator, in float64 but exact in the dtype they were drawn for."""

    geometry: Geometry
    input: Floats
    offset: Floats
    weight: Floats
    bias: Floats | None
    mask: Floats | None
    grad_output: Floats
    grad_columns: Floats


def draw(
    rng: np.random.Generator,
    geometry: Geometry,
    dtype: str = "float32",
    offset_dtype: str | None = None,
    reach: float = 2.5,
) -> Problem:
    """Draw a problem whose samples keep away from the knots; `reach` is how many pixels an offset may have."""
    g = geometry
    coordinates = offset_dtype or dtype

    def normal(*shape: int) -> Floats:
        return rounded(rng.normal(size=shape), dtype)

    return Problem(
        geometry,
        normal(g.batch, g.channels, *g.sizes),
        offsets_away_from_knots(rng, (g.batch, g.offset_groups * g.taps * g.n, *g.out), coordinates, reach),
        normal(g.out_channels, g.channels // g.groups, *g.kernel),
        normal(g.out_channels) if g.biased else None,
        rounded(rng.uniform(0, 2, (g.batch, g.offset_groups * g.taps, *g.out)), coordinates) if g.masked else None,
        normal(g.batch, g.out_channels, *g.out),
        normal(g.batch, g.channels * g.taps, prod(g.out)),
    )


def convolution_arguments(problem: Problem) -> tuple[Any, ...]:
    """Arguments of `deform_conv` in their order."""
    p = problem
    return p.input, p.offset, p.weight, p.bias, *p.geometry.places, p.mask


def column_arguments(problem: Problem) -> tuple[Any, ...]:
    """Arguments of `deform_im2col` in their order."""
    p = problem
    return p.input, p.offset, p.geometry.kernel, *p.geometry.places, p.mask


# Every way to give the numbers, every grouping, with mask and bias and without, for all numbers of dimensions.
GEOMETRIES = {
    "1-D": Geometry((9,), (3,), padding=1),
    "1-D strided, dilated, two offset groups, no mask": Geometry(
        (11,), (2,), (2,), (2,), 3, offset_groups=2, masked=False
    ),
    "1-D asymmetric, grouped, no bias": Geometry((8,), (4,), padding=(3, 0), groups=2, biased=False),
    "2-D": Geometry((5, 7), (3, 3), padding=1),
    "2-D plain": Geometry((5, 7), (2, 3), masked=False, biased=False),
    "2-D of all sorts": Geometry((7, 8), (3, 2), (2, 1), (0, 2), (1, 2), offset_groups=2, groups=2),
    "2-D asymmetric": Geometry((6, 5), (2, 2), 1, (0, 1, 2, 3), (2, 1), offset_groups=4),
    "2-D of one channel a group": Geometry((5, 6), (3, 3), 2, 1, groups=4, out_channels=8),
    "2-D pointwise": Geometry((4, 5), (1, 1), offset_groups=2),
    "2-D kernel larger than the input": Geometry((2, 3), (5, 4), padding=(2, 3), groups=2, masked=False),
    "3-D": Geometry((3, 4, 5), (3, 3, 3), padding=1),
    "3-D of all sorts": Geometry((4, 5, 6), (2, 1, 3), (1, 2, 1), (1, 0, 2), (1, 3, 2), offset_groups=2, groups=2),
    "3-D asymmetric, no mask": Geometry((3, 4, 3), (2, 2, 1), padding=(1, 0, 0, 0, 2, 1), masked=False),
}
