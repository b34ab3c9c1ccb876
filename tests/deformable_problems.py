"""Random problems of the deformable operators, and how an operator is called and checked on one."""

from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import cudakit
from cudakit import reference

from .conftest import Arrays
from .tolerances import TOLERANCES, Floats, assert_close, offsets_away_from_knots, rounded

Numbers = int | Sequence[int]

OPERATORS = ("deform_im2col", "deform_col2im", "deform_im2col_backward", "deform_conv", "deform_conv_backward")
COORDINATES = ("offset", "mask")  # may be float32 beside half-precision data


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
    """Random arguments of every deformable operator, in float64 but exact in the dtype they were drawn for.

    Once `on` a device, they are arrays of one dtype there.
    """

    geometry: Geometry
    input: Any
    offset: Any
    weight: Any
    bias: Any
    mask: Any
    output: Any  # the gradient by the output of the convolution
    columns: Any  # the gradient by columns

    def on(self, arrays: Arrays, dtype: str = "float32", offset_dtype: str | None = None) -> "Problem":
        """Return the problem on a device."""
        return self.map(lambda name, x: arrays.make(x, (offset_dtype or dtype) if name in COORDINATES else dtype))

    def map(self, change: Callable[[str, Any], Any]) -> "Problem":
        """Return the problem with every array that there is replaced by change(name, array)."""
        given = {name: array for name, array in self._asdict().items() if name != "geometry" and array is not None}
        return self._replace(**{name: change(name, array) for name, array in given.items()})

    def arguments(self, operator: str) -> tuple[Any, ...]:
        """Return the arguments of an operator, in their order."""
        g = self.geometry
        sampling = (self.input, self.offset, g.kernel, *g.places, self.mask)
        convolution = (self.input, self.offset, self.weight, self.bias, *g.places, self.mask)
        return {
            "deform_im2col": sampling,
            "deform_col2im": (self.columns, self.offset, g.sizes, g.kernel, *g.places, self.mask),
            "deform_im2col_backward": (self.columns, *sampling),
            "deform_conv": convolution,
            "deform_conv_backward": (self.output, *convolution),
        }[operator]


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


def call(operator: str, problem: Problem, library: ModuleType = cudakit, **options: Any) -> dict[str, Any]:
    """Run an operator; return its results by name."""
    name = operator if library is reference else operator.replace("conv", f"conv{problem.geometry.n}d")
    result = getattr(library, name)(*problem.arguments(operator), **options)
    if isinstance(result, tuple):
        return result._asdict()
    return {{"deform_im2col": "columns", "deform_col2im": "input", "deform_conv": "output"}[operator]: result}


def channels_last(geometry: Geometry, name: str, array: Any) -> Any:
    """Return an argument or result in the other data format."""
    if name in ("weight", "bias"):
        return array
    if name == "columns":  # (N, C*K, L) -> (N, L, K*C)
        parts = array.reshape(geometry.batch, geometry.channels, geometry.taps, prod(geometry.out))
        return parts.transpose(0, 3, 2, 1).reshape(geometry.batch, prod(geometry.out), -1)
    return np.moveaxis(array, 1, -1)


def check(
    arrays: Arrays,
    operator: str,
    made: Problem,
    dtype: str = "float32",
    offset_dtype: str | None = None,
    *,
    scale: float = 1.0,
    **options: Any,
) -> None:
    """Compare the results of an operator with the oracle's, and look at their kind and dtype."""
    results = call(operator, made, **options)
    expected = call(operator, made.map(lambda _, array: arrays.back(array)), reference)
    assert list(results) == list(expected)
    for name, values in expected.items():
        assert (results[name] is None) == (values is None)
        if values is not None:
            argument = made.offset if name in COORDINATES else made.input
            assert type(results[name]) is type(argument)
            assert results[name].dtype == argument.dtype
            own = (offset_dtype or dtype) if name in COORDINATES else dtype
            assert_close(
                arrays.back(results[name]), values, own, scale=scale * column_rounding(arrays, operator, dtype)
            )


def column_rounding(arrays: Arrays, operator: str, dtype: str) -> float:
    """Return how much more than rounding once a result of half precision may carry, for `assert_close`.

    A GPU multiplies columns of the storage dtype, so each term of a sum is rounded to that first. These roundings are
    independent: their sum stays within a few of the largest result's.
    """
    if arrays.device == "cpu" or "conv" not in operator or dtype not in ("float16", "bfloat16"):
        return 1.0
    rtol, atol = TOLERANCES[dtype]
    return 2 * rtol / atol


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
