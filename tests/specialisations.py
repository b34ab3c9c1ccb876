"""Every specialisation that a CUDA launch can ask for, learnt from the operators' own plans; nothing is compiled here.

An operator is covered once its calls stand in `CALLS`; a test fails while one of the library's operators is missing.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

from cudakit.array import CPU, Spec, contiguous_strides
from cudakit.deformable.column_checks import DeformOptions
from cudakit.deformable.conv_ops import ConvOptions
from cudakit.deformable.geometry import Window
from cudakit.launch import Launch
from cudakit.op import OPS
from cudakit.plan import Target
from cudakit.sampling.affine import AffineGridOptions
from cudakit.sampling.grid import GridSampleOptions
from cudakit.sampling.grid_form import MODES, PADDING_MODES
from cudakit.source import Kernel, render

CUDA, HOST = Target(("cuda", 0), 1), Target(CPU, 2)
REPRODUCIBLE = CUDA._replace(reproducible=True)
DTYPES = ("float16", "bfloat16", "float32", "float64")
GRID_DTYPES = [(dtype, dtype) for dtype in DTYPES] + [("float16", "float32"), ("bfloat16", "float32")]
IMAGES = [  # (channels, format): one channel at a time, groups of them, and few and many lanes
    (1, "channels_first"),
    (3, "channels_last"),
    (4, "channels_first"),
    (8, "channels_last"),
    (256, "channels_last"),
]
SPACES = ((6, 4, 5), (1 << 31, 4, 5))  # the second needs 64-bit indices

PLAIN = Window((1,), (0,), (1,))  # stride, padding, dilation

Call = tuple[tuple[Spec, ...], Any]


def spec(dtype: str, *shape: int) -> Spec:
    """Return what a contiguous array looks like."""
    return Spec(shape, contiguous_strides(shape), dtype)


def affine_calls(backward: bool) -> Iterator[Call]:
    """Yield the calls of `affine_grid` or of its gradient."""
    for dtype, n, space in itertools.product(DTYPES, (2, 3), SPACES):
        shape = (*space[:n], n) if backward else (n, n + 1)
        yield (spec(dtype, 2, *shape),), AffineGridOptions(2, space[:n], False)


def sampling_calls(backward: bool) -> Iterator[Call]:
    """Yield the calls of `grid_sample` or of its gradients, with as many pixels out as in."""
    choices = itertools.product(GRID_DTYPES, (1, 2, 3), MODES, PADDING_MODES, SPACES, IMAGES)
    for (dtype, grid_dtype), n, mode, padding_mode, space, (channels, data_format) in choices:
        shape = (*space[:n], channels) if data_format == "channels_last" else (channels, *space[:n])
        x, grid = spec(dtype, 2, *shape), spec(grid_dtype, 2, *space[:n], n)
        yield (x, x, grid) if backward else (x, grid), GridSampleOptions(mode, padding_mode, False, data_format)


def deformable_arrays(
    dtype: str, offset_dtype: str, space: tuple[int, ...], image: tuple[int, str], stride: int
) -> dict[str, Spec]:
    """Return the arrays of deformable operators with a kernel of one tap."""
    (channels, data_format), n = image, len(space)
    out = tuple((size - 1) // stride + 1 for size in space)

    def batch(kind: str, count: int, sizes: tuple[int, ...]) -> Spec:
        return spec(kind, 2, *((*sizes, count) if data_format == "channels_last" else (count, *sizes)))

    return {
        "input": batch(dtype, channels, space),
        "columns": batch(dtype, channels, (prod(out),)),
        "offset": batch(offset_dtype, n, out),
        "mask": batch(offset_dtype, 1, out),
        "weight": spec(dtype, channels, channels, *[1] * n),
        "depthwise": spec(dtype, channels, 1, *[1] * n),  # its weight where each channel is a group
        "bias": spec(dtype, channels),
        "output": batch(dtype, channels, out),
    }


def convolution_calls(n: int, *names: str) -> Iterator[Call]:
    """Yield the calls of a convolution, with one group and with one for each channel; `names` come before its own."""
    for weight in ("weight", "depthwise"):
        arrays = tuple(weight if name == "weight" else name for name in CONVOLUTION)
        yield from deformable_calls((*names, *arrays), (n,), convolution_options)


def deformable_calls(names: tuple[str, ...], ns: tuple[int, ...], make: Callable[..., Any]) -> Iterator[Call]:
    """Yield the calls of a deformable operator of these arrays; `make` gives the options of (space, format)."""
    for (dtype, offset_dtype), n, sizes, image in itertools.product(GRID_DTYPES, ns, SPACES, IMAGES):
        space = sizes[:n]
        options = make(space, image[1])
        arrays = deformable_arrays(dtype, offset_dtype, space, image, *options.moves.stride)
        yield tuple(arrays[name] for name in names), options


def column_options(space: tuple[int, ...], data_format: str) -> DeformOptions:
    """Return the options of `deform_im2col` and the operators around it."""
    return DeformOptions((1,), PLAIN, data_format, space)


def convolution_options(space: tuple[int, ...], data_format: str) -> ConvOptions:
    """Return the options of a deformable convolution; a large image has few outputs, lest its plan have many steps."""
    moves = PLAIN if max(space) < 1 << 31 else PLAIN._replace(stride=(1 << 28,))
    return ConvOptions(moves, data_format, None, False)


COLUMN_CALLS = {
    "deform_im2col": ("input", "offset", "mask"),
    "deform_col2im": ("columns", "offset", "mask"),
    "deform_im2col_backward": ("columns", "input", "offset", "mask"),
    "deform_col2im_backward": ("input", "columns", "offset", "mask"),
}
CONVOLUTION = ("input", "offset", "weight", "bias", "mask")


def double_calls(backward: str) -> Iterator[Call]:
    """Yield the calls of what differentiates an operator of gradients."""
    op = OPS[backward]
    for arrays, options in CALLS[backward]():
        yield (*arrays[1:], *arrays), options._replace(needs=op.arrays)


DOUBLE = ("grid_sample", "deform_im2col", "deform_col2im", *(f"deform_conv{n}d" for n in (1, 2, 3)))
CALLS: dict[str, Callable[[], Iterator[Call]]] = {
    "affine_grid": lambda: affine_calls(False),
    "affine_grid_backward": lambda: affine_calls(True),
    "grid_sample": lambda: sampling_calls(False),
    "grid_sample_backward": lambda: sampling_calls(True),
    **{name: partial(deformable_calls, arrays, (1, 2, 3), column_options) for name, arrays in COLUMN_CALLS.items()},
    **{f"deform_conv{n}d": partial(convolution_calls, n) for n in (1, 2, 3)},
    **{f"deform_conv{n}d_backward": partial(convolution_calls, n, "output") for n in (1, 2, 3)},
    "affine_grid_double_backward": lambda: affine_calls(False),
    **{f"{name}_double_backward": partial(double_calls, f"{name}_backward") for name in DOUBLE},
}


class Specialisation(NamedTuple):
    """A kernel and the constants that it is compiled with."""

    kernel: Kernel
    constants: tuple[tuple[str, str | int], ...]

    def constant(self, name: str, default: str | int = 0) -> str | int:
        """Return one of the constants."""
        return dict(self.constants).get(name, default)

    @property
    def types(self) -> tuple[str, str, str]:
        """The kernel's name and the two storage types."""
        return self.kernel.name, str(self.constant("SCALAR")), str(self.constant("COORD"))

    @property
    def text(self) -> str:
        """What NVRTC gets to see."""
        return render(self.kernel, dict(self.constants), host=False)


@cache
def specialisations(target: Target = CUDA) -> tuple[Specialisation, ...]:
    """Return what all these calls would have compiled for a GPU or a CPU, each once, in the order of the calls.

    Results that must be the same in every run are.
    """
    found: dict[Specialisation, None] = {}
    for name, op in OPS.items():
        for specs, options in CALLS[name]():
            plan = op.prepare(specs, options, target)
            assert not (plan.varies and target.reproducible)
            for step in plan.steps:
                loaded = step.launch.kernel if isinstance(step.launch, Launch) else None  # the filling of a workspace
                if loaded is not None and loaded.device == target.device:
                    found[Specialisation(loaded._kernel, tuple(loaded._constants.items()))] = None
    return tuple(found)
