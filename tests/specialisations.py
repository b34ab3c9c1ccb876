"""Every specialisation that a CUDA launch can ask for, learnt from the operators' own plans; nothing is compiled here.

An operator is covered once its calls stand in `CALLS`; a test fails while one of the library's operators is missing.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import cudakit
from cudakit.affine import AffineGridOptions
from cudakit.array import Spec, contiguous_strides
from cudakit.launch import Launch
from cudakit.op import Op, Target
from cudakit.sampling import GridSampleOptions
from cudakit.sampling_plan import MODES, PADDING_MODES
from cudakit.source import Kernel, render

CUDA = Target(("cuda", 0), 1)
DTYPES = ("float16", "bfloat16", "float32", "float64")
GRID_DTYPES = [(dtype, dtype) for dtype in DTYPES] + [("float16", "float32"), ("bfloat16", "float32")]
IMAGES = [  # (channels, format): one channel at a time, groups of them, and few and many lanes
    (1, "channels_first"),
    (3, "channels_last"),
    (4, "channels_first"),
    (16, "channels_last"),
    (256, "channels_last"),
]
SPACES = ((6, 4, 5), (1 << 31, 4, 5))  # the second needs 64-bit indices

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


CALLS: dict[str, Callable[[], Iterator[Call]]] = {
    "affine_grid": lambda: affine_calls(False),
    "affine_grid_backward": lambda: affine_calls(True),
    "grid_sample": lambda: sampling_calls(False),
    "grid_sample_backward": lambda: sampling_calls(True),
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


def library_modules() -> list[ModuleType]:
    """Return the modules of cudakit that are imported; `cudakit` itself brings every family."""
    prefix = cudakit.__name__
    return [module for name, module in sorted(sys.modules.items()) if name == prefix or name.startswith(f"{prefix}.")]


def operators() -> dict[str, Op]:
    """Return every operator of the library by its name."""
    found = [value for module in library_modules() for value in vars(module).values() if isinstance(value, Op)]
    return {op.name: op for op in found}


@cache
def specialisations() -> tuple[Specialisation, ...]:
    """Return what all these calls would have compiled for a GPU, each once, in the order of the calls."""
    found: dict[Specialisation, None] = {}
    for name, op in operators().items():
        for specs, options in CALLS[name]():
            for step in op.prepare(specs, options, CUDA).steps:
                if isinstance(step.launch, Launch):  # and not the filling of a workspace
                    loaded = step.launch.kernel
                    found[Specialisation(loaded._kernel, tuple(loaded._constants.items()))] = None
    return tuple(found)
