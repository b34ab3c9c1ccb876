"""Calls with random shapes, strides and coordinates, for use under sanitizers: ``fuzz.py CALLS PART PARTS [DEVICE]``.

Buffers are of exactly the size that is needed, so that an address sanitizer sees every element read or written too far.
What comes out must be finite: inputs are, and a coordinate that is not looks outside or at the border. Where DEVICE is
"cuda", arrays are CuPy's, and the results those on a CPU but for rounding.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import cudakit
from cudakit.op import OPS

DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}  # of a result's largest number


class Setting(NamedTuple):
    """What kernels are compiled for; the rest is drawn anew for every call."""

    dtype: str
    n: int
    mode: str
    padding_mode: str
    channels: int
    data_format: str = "channels_first"


AFFINE_SETTINGS = [(2, "float32"), (3, "bfloat16")]
SETTINGS = [
    Setting("float16", 1, "bilinear", "reflection", 2, "channels_last"),
    Setting("float64", 1, "bicubic", "border", 17, "channels_last"),
    Setting("bfloat16", 2, "nearest", "border", 3),
    Setting("float32", 2, "bilinear", "zeros", 3, "channels_last"),
    Setting("float16", 2, "bicubic", "reflection", 17),
    Setting("bfloat16", 3, "nearest", "reflection", 5, "channels_last"),
    Setting("float32", 3, "bilinear", "zeros", 70),
    Setting("float32", 2, "bilinear", "border", 63, "channels_last"),
    Setting("float16", 3, "bicubic", "zeros", 1),
]


class DeformSetting(NamedTuple):
    """The same for the deformable operators; the groups are of offsets, now and then also of the convolution."""

    dtype: str
    offset_dtype: str
    n: int
    channels: int
    groups: int = 1
    data_format: str = "channels_first"


DEFORM_SETTINGS = [
    DeformSetting("float32", "float32", 1, 3),
    DeformSetting("float16", "float16", 1, 34, 2, "channels_last"),
    DeformSetting("float32", "float32", 2, 8, 2, "channels_last"),
    DeformSetting("bfloat16", "float32", 2, 31),
    DeformSetting("float64", "float64", 2, 4, 4),
    DeformSetting("float32", "float32", 2, 64, 2),  # the weights as they are given, for few pixels
    DeformSetting("float16", "float32", 3, 5, 1, "channels_last"),
    DeformSetting("float32", "float32", 3, 66, 2),
]

SPECIAL = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 65504.0, 1e-30, -0.0, 0.0, 1.0, -1.0]


def library(x: Any) -> Any:
    """Return NumPy or CuPy."""
    return import_module(type(x).__module__.partition(".")[0])


def plain(x: Any) -> Any:
    """Return the same values in C order."""
    return x.copy()


def reverse(x: Any) -> Any:
    """Return the same values from memory that runs backwards."""
    return x[..., ::-1].copy()[..., ::-1]


def spread(x: Any) -> Any:
    """Return the same values two apart, the last of them at the very end of its buffer."""
    wide = library(x).zeros([2 * size - 1 for size in x.shape], x.dtype)
    wide[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return wide[tuple(slice(None, None, 2) for _ in x.shape)]


def part(x: Any) -> Any:
    """Return the same values as a part of a wider array: that of a tensor's channels, with the channels last."""
    return library(x).concatenate([x, x], -1)[..., : x.shape[-1]]


def shift(x: Any) -> Any:
    """Return the same values one element behind where an array begins."""
    moved = library(x).zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
    moved[...] = x
    return moved


def transpose(x: Any) -> Any:
    """Return the same values in Fortran order."""
    return library(x).asfortranarray(x)


def broadcast(x: Any) -> Any:
    """Return an array of the same shape that repeats its first entry."""
    return library(x).broadcast_to(x[:1], x.shape)


LAYOUTS: tuple[Callable[[Any], Any], ...] = (plain, plain, reverse, spread, part, shift, transpose, broadcast)


class Fuzzer:
    """Draws calls and makes them."""

    def __init__(self, seed: int, device: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.xp = import_module({"cpu": "numpy", "cuda": "cupy"}[device])
        if device == "cuda":
            self.xp.cuda.set_allocator(None)  # a pool's blocks go on where an array ends

    def sizes(self, n: int) -> tuple[int, ...]:
        """Draw n small sizes, often 1 and now and then more than a tile."""
        return tuple(int(self.rng.choice((1, 1, 2, 3, 5, 9, 34))) for _ in range(n))

    def array(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Draw an array, in any layout."""
        return self.laid_out(self.rng.uniform(-4, 4, shape), dtype)

    def laid_out(self, values: Any, dtype: str) -> Any:
        """Return an array of these values, in any layout."""
        layout = LAYOUTS[self.rng.integers(len(LAYOUTS))]
        with np.errstate(over="ignore"):
            return layout(self.xp.asarray(values.astype(DTYPES[dtype])))

    def grid(self, shape: tuple[int, ...], sizes: tuple[int, ...], dtype: str) -> Any:
        """Draw coordinates: anywhere, exactly on pixels and edges, and no numbers at all."""
        knots = self.rng.integers(-9, 10, shape) / np.array(sizes[::-1])
        values = np.where(self.rng.random(shape) < 0.5, knots, self.rng.uniform(-2, 2, shape))
        values = np.where(self.rng.random(shape) < 0.1, self.rng.choice(SPECIAL, shape), values)
        return self.laid_out(values, dtype)

    def sample(self, setting: Setting) -> None:
        """Call `grid_sample` and its gradients."""
        dtype, n, mode, padding_mode, channels, data_format = setting
        batch, sizes, out = int(self.rng.integers(1, 4)), self.sizes(n), self.sizes(n)
        last = data_format == "channels_last"
        x = self.array((batch, *sizes, channels) if last else (batch, channels, *sizes), dtype)
        grid = self.grid((batch, *out, n), sizes, dtype)
        arguments = (x, grid, mode, padding_mode, bool(self.rng.integers(2)))
        (y,) = run(cudakit.grid_sample, *arguments, data_format=data_format)
        needs = [("input",), ("grid",), ("input", "grid")][self.rng.integers(3)]
        grad = self.array(y.shape, dtype)
        run(cudakit.grid_sample_backward, grad, *arguments, needs=needs, data_format=data_format)
        self.twice("grid_sample", (grad, x, grid), *arguments[2:], data_format)

    def twice(self, name: str, arrays: tuple[Any, ...], *options: Any) -> None:
        """Differentiate an operator's gradients; `arrays` are what they are computed from."""
        op = OPS[f"{name}_double_backward"]
        directions = [None if x is None or self.rng.random() < 0.2 else self.direction(x) for x in arrays[1:]]

        def differentiate(*given: Any) -> tuple[Any, ...]:
            return op(given, *options)

        run(differentiate, *directions, *arrays)

    def direction(self, x: Any) -> Any:
        """Draw a small array like another, lest products of four leave the range of half precision."""
        return self.laid_out(self.rng.uniform(-1, 1, x.shape) / 64, x.dtype.name)

    def offsets(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Draw offsets: anywhere near, exactly on pixels and half-way between, and no numbers at all."""
        halves = self.rng.integers(-9, 10, shape) / 2
        values = np.where(self.rng.random(shape) < 0.5, halves, self.rng.uniform(-5, 5, shape))
        values = np.where(self.rng.random(shape) < 0.1, self.rng.choice(SPECIAL, shape), values)
        return self.laid_out(values, dtype)

    def window(self, n: int) -> tuple[Any, ...]:
        """Draw (sizes, kernel, stride, padding, dilation, output sizes) with at least one output pixel."""
        sizes = self.rng.choice((1, 2, 3, 5, 9, 34 if n == 1 else 7), n)
        kernel, stride, dilation, before, after = self.rng.integers(1, 4, (5, n)) - [[0], [0], [0], [1], [1]]
        after = np.maximum(after, dilation * (kernel - 1) + 1 - sizes - before)
        out = (sizes + before + after - dilation * (kernel - 1) - 1) // stride + 1
        padding = (*before, *after)
        return tuple(tuple(map(int, numbers)) for numbers in (sizes, kernel, stride, padding, dilation, out))

    def deform(self, setting: DeformSetting) -> None:
        """Call the deformable operators and their gradients."""
        dtype, offset_dtype, n, channels, groups, data_format = setting
        sizes, kernel, *places, out = self.window(n)
        taps, batch, group = prod(kernel), int(self.rng.integers(1, 4)), int(self.rng.choice((1, groups, channels)))

        def shape(count: int, space: tuple[int, ...]) -> tuple[int, ...]:
            return (batch, *space, count) if data_format == "channels_last" else (batch, count, *space)

        x = self.array(shape(channels, sizes), dtype)
        offset = self.offsets(shape(groups * taps * n, out), offset_dtype)
        mask = self.array(shape(groups * taps, out), offset_dtype) if self.rng.integers(2) else None
        options = {"mask": mask, "data_format": data_format}
        (columns,) = run(cudakit.deform_im2col, x, offset, kernel, *places, **options)
        run(cudakit.deform_col2im, columns, offset, sizes, kernel, *places, **options)
        needs = self.some(("input", "offset", "mask"))
        grad = self.array(columns.shape, dtype)
        run(cudakit.deform_im2col_backward, grad, x, offset, kernel, *places, needs=needs, **options)
        self.twice("deform_im2col", (grad, x, offset, mask), kernel, *places, data_format)
        self.twice("deform_col2im", (x, columns, offset, mask), kernel, *places, data_format, sizes)

        count = group * int(self.rng.choice((1, 2) if group == channels else (1, 3, 20, 150)))
        weight = self.array((count, channels // group, *kernel), dtype)
        arguments = (x, offset, weight, self.array((count,), dtype) if self.rng.integers(2) else None, *places)
        convolve = getattr(cudakit, f"deform_conv{n}d")
        (y,) = run(convolve, *arguments, **options)
        needs = self.some(("input", "offset", "weight", "bias", "mask"))
        differentiate = getattr(cudakit, f"deform_conv{n}d_backward")
        grad = self.array(y.shape, dtype)
        run(differentiate, grad, *arguments, needs=needs, **options)
        self.twice(convolve.__name__, (grad, *arguments[:4], mask), *places, data_format, None, False)

    def some(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Draw some of the names, often all."""
        share = self.rng.choice((0.5, 1.0))
        return tuple(name for name in names if self.rng.random() < share)

    def affine(self, n: int, dtype: str) -> None:
        """Call `affine_grid` and its gradient."""
        size = (int(self.rng.integers(1, 4)), 1, *self.sizes(n))
        align_corners = bool(self.rng.integers(2))
        (grid,) = run(cudakit.affine_grid, self.array((size[0], n, n + 1), dtype), size, align_corners)
        run(cudakit.affine_grid_backward, grid, size, align_corners)


def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, ...]:
    """Call an operator, check its results, and return them."""
    results = several(function(*arguments, **options))
    found = [on_host(array) for array in results]
    for array in found:
        assert array is None or np.isfinite(array.astype(np.float64)).all(), (function.__name__, options)
    if any(hasattr(x, "get") for x in arguments):
        given = [on_host(x) for x in arguments]
        named = {name: on_host(x) for name, x in options.items()}
        rounding = max(ROUNDING[x.dtype.name] for x in given if hasattr(x, "dtype"))
        for array, expected in zip(found, several(function(*given, **named)), strict=True):
            assert (array is None) == (expected is None)
            if array is not None and array.size:
                numbers, others = array.astype(np.float64), expected.astype(np.float64)
                limit = rounding * max(1.0, np.abs(others).max())
                assert np.abs(numbers - others).max() <= limit, (function.__name__, options)
    return results


def several(results: Any) -> tuple[Any, ...]:
    """Return the results of an operator, of which there may be one."""
    return results if isinstance(results, tuple) else (results,)


def on_host(x: Any) -> Any:
    """Return an array of a GPU as NumPy's, and anything else as it is."""
    return x.get() if hasattr(x, "get") else x


def main(calls: int, part: int, parts: int, device: str) -> None:
    """Make so many calls with every setting of one of several parts of them."""
    fuzzer = Fuzzer(part, device)
    sampling = [(fuzzer.sample, (setting,)) for setting in SETTINGS]
    deforming = [(fuzzer.deform, (setting,)) for setting in DEFORM_SETTINGS]
    affine = [(fuzzer.affine, setting) for setting in AFFINE_SETTINGS]
    draws = [*sampling, *deforming, *affine][part::parts]
    for i, (make, arguments) in enumerate(draws):
        cudakit.set_num_threads(1 + i % 3)  # once for each setting, because kernels depend on it
        for _ in range(calls):
            make(*arguments)
    print(calls * len(draws))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *(sys.argv[4:] or ["cpu"]))
