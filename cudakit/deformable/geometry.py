"""What the operators of deformable convolution have in common: their options, shapes and checks."""

from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import Spec, itemsize
from cudakit.errors import InvalidArgument
from cudakit.layout import Image, ordered
from cudakit.structs import inverses

Integers = tuple[int, ...]


class Window(NamedTuple):
    """How a kernel moves over its input; a single number stands for all dimensions."""

    stride: Integers
    padding: Integers
    dilation: Integers


def window(stride: Any, padding: Any, dilation: Any) -> Window:
    """Check what moves a kernel, as far as it goes without knowing the number of dimensions."""
    return Window(
        numbers("stride", stride, minimum=1),
        numbers("padding", padding, minimum=0),
        numbers("dilation", dilation, minimum=1),
    )


def numbers(argument: str, value: Any, *, minimum: int) -> Integers:
    """Check an int or a sequence of ints."""
    sign = "positive" if minimum else "non-negative"
    # An array has __index__, of any size; PyTorch's compiler cannot say whether a symbol has.
    single = type(value) is int or (hasattr(value, "__index__") and not getattr(value, "shape", ()))
    given = (value,) if single else value
    rule = f"be a {sign} int or a tuple of them"
    found = checks.integers(argument, given, rule, length=range(1, 7), minimum=minimum, instead=value)
    if max(found) >= 2**60:  # places in a padded input are 64-bit integers
        raise InvalidArgument(argument, f"{rule} below 2**60", checks.shown(value))
    return found


def per_dimension(argument: str, values: Integers, n: int, reason: str = "") -> Integers:
    """Return one number for each of n dimensions; `reason` tells where n comes from, if it needs to be told."""
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise InvalidArgument(argument, f"be an int or {n} int{'s' * (n > 1)}{reason}", values)
    return values


def paddings(values: Integers, n: int) -> tuple[Integers, Integers]:
    """Return what is added before and after each of n dimensions."""
    if len(values) == 2 * n and n > 0:
        return values[:n], values[n:]
    if len(values) not in (1, n):
        raise InvalidArgument("padding", f"be an int, {n} ints, or {2 * n} (all begins, then all ends)", values)
    same = per_dimension("padding", values, n)
    return same, same


class Deformation(NamedTuple):
    """Where the samples of one call lie, checked. Sizes have the slowest dimension first."""

    batch: int
    channels: int
    offset_groups: int
    space: Integers
    out: Integers
    kernel: Integers
    stride: Integers
    pad: Integers
    dilation: Integers
    dtype: str
    coordinate_dtype: str  # of offsets and masks
    channels_last: bool  # data_format
    masked: bool
    first_pixel: int = 0  # of an output image that is visited
    some_pixels: int = 0  # from there on, 0: all

    @property
    def n(self) -> int:
        """Spatial dimensions."""
        return len(self.space)

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Pixels of an output image."""
        return prod(self.out)

    @property
    def visited(self) -> int:
        """Pixels of an output image that one launch visits."""
        return self.some_pixels or self.pixels

    @property
    def reach(self) -> int:
        """The largest number that places along a dimension are made of."""
        ends = zip(self.out, self.stride, self.kernel, self.dilation, self.pad, strict=True)
        return max((o - 1) * s + (k - 1) * d + p for o, s, k, d, p in ends)

    @property
    def offset_channels(self) -> int:
        """Channels of the offsets."""
        return self.offset_groups * self.taps * self.n

    @property
    def mask_channels(self) -> int:
        """Channels of the masks, or those that they would have."""
        return self.offset_groups * self.taps

    def strides(self, channels: int) -> Integers:
        """Return the strides (batch, channel, pixel) of a contiguous array of that many channels."""
        size = channels * self.pixels
        return (size, 1, channels) if self.channels_last else (size, self.pixels, 1)

    def shape(self, channels: int, space: Integers) -> Integers:
        """Return the shape of an array of that many channels in the data format."""
        return ordered(self.batch, channels, space, self.channels_last)

    def with_batch(self, count: int) -> "Deformation":
        """Return the same for that many images."""
        return self._replace(batch=count)

    def coordinate_bytes(self, channels: int) -> int:
        """Return the size of one image's offsets or masks."""
        return channels * self.pixels * itemsize(self.coordinate_dtype)


GEOMETRY_FIELDS = tuple(
    (f"geometry.{name}", count)
    for name, count in (
        *((name, 1) for name in ("batch", "channels", "groups", "pixels", "first", "taps")),
        *((name, 3) for name in ("size", "out", "kernel", "stride", "pad", "dilation")),
        *(("input_stride", 5), ("offset_stride", 3), ("mask_stride", 3)),
        *((f"inverse_{name}", 1) for name in ("batch", "groups", "pixels", "taps", "pairs")),
        *(("inverse_out", 3), ("inverse_kernel", 3)),
    )
)


def geometry_values(d: Deformation, input_strides: Integers) -> tuple[int | Integers, ...]:
    """Return the values of `GEOMETRY_FIELDS`."""
    return (
        *(d.batch, d.channels, d.offset_groups, d.visited, d.first_pixel, d.taps),
        *(d.space, d.out, d.kernel, d.stride, d.pad, d.dilation),
        *(input_strides, d.strides(d.offset_channels), d.strides(d.mask_channels)),
        *inverses(d.batch, d.offset_groups, d.visited, d.taps, d.offset_groups * d.taps),
        *(inverses(*d.out), inverses(*d.kernel)),
    )


def output_sizes(
    space: Integers, kernel: Integers, moves: Window, sized: str = "input"
) -> tuple[Integers, Integers, Integers, Integers]:
    """Return (output sizes, stride, padding before, dilation) for each dimension; the argument `sized` says `space`."""
    n = len(space)
    stride = per_dimension("stride", moves.stride, n)
    dilation = per_dimension("dilation", moves.dilation, n)
    begin, end = paddings(moves.padding, n)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padded = [size + b + e for size, b, e in zip(space, begin, end, strict=True)]
    if any(span > size for span, size in zip(spans, padded, strict=True)):
        rule = f"be at least as large, with its padding, as the dilated kernel, {tuple(spans)}"
        raise InvalidArgument(sized, rule, f"spatial sizes {tuple(padded)} with padding")
    out = tuple((size - span) // step + 1 for size, span, step in zip(padded, spans, stride, strict=True))
    return out, stride, begin, dilation


def _in_order(batch: str, channels: str, out: Integers, last: bool) -> str:
    sizes = [str(size) for size in out]
    return ", ".join([batch, *sizes, channels] if last else [batch, channels, *sizes])


def offset_groups(offset: Spec, batch: int, channels: int, taps: int, out: Integers, last: bool) -> int:
    """Check the shape of the offsets and return in how many groups they come."""
    n = len(out)
    one = n * taps
    found = offset.shape
    count = found[-1 if last else 1] if len(found) == n + 2 else 0
    if count == 0 or count % one or found[0] != batch or (found[1:-1] if last else found[2:]) != out:
        shape = _in_order(f"N={batch}", f"{n}*G*K={one}*G", out, last)
        raise InvalidArgument("offset", f"have shape ({shape})", offset.shape)
    groups = count // one
    if channels % groups:
        rule = f"have {n}*G*K={one}*G channels with a G that divides C={channels}"
        raise InvalidArgument("offset", rule, f"{offset.shape} with G={groups}")
    return groups


def deformation(
    input: Image,
    offset: Spec,
    mask: Spec | None,
    kernel: Integers,
    moves: Window,
    data_format: str,
    names: tuple[str, str] = ("input", "input"),
) -> Deformation:
    """Check the arrays that say where to look; `input` is checked already.

    `names` are those of the arguments that its dtype and its size come from.
    """
    last = data_format == "channels_last"
    batch, channels, *space = input.shape
    checks.coordinate_dtype("offset", offset, names[0], input.dtype)
    out, stride, pad, dilation = output_sizes(tuple(space), kernel, moves, names[1])
    groups = offset_groups(offset, batch, channels, prod(kernel), out, last)
    d = Deformation(
        *(batch, channels, groups, tuple(space), out, kernel, stride, pad, dilation),
        *(input.dtype, offset.dtype, last, mask is not None),
    )
    if mask is not None:
        checks.same_dtype("mask", mask, "offset", offset.dtype)
        if mask.shape != d.shape(d.mask_channels, out):
            shape = _in_order(f"N={batch}", f"G*K={d.mask_channels}", out, last)
            raise InvalidArgument("mask", f"have shape ({shape})", mask.shape)
    return d


def columns_strides(d: Deformation) -> Integers:
    """Return the strides (batch, channel, tap, pixel) of contiguous columns in the data format."""
    size = d.channels * d.taps * d.pixels
    if d.channels_last:
        return (size, 1, d.channels, d.taps * d.channels)
    return (size, d.taps * d.pixels, d.pixels, 1)


def columns_shape(d: Deformation) -> Integers:
    """Return the shape of the columns in the data format."""
    return d.shape(d.channels * d.taps, (d.pixels,))
