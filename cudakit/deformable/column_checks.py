"""What `deform_im2col`, its adjoint, and their gradients take, and how it is checked."""

from math import prod
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import Spec
from cudakit.deformable.geometry import (
    Deformation,
    Integers,
    Window,
    columns_shape,
    deformation,
    numbers,
    per_dimension,
    window,
)
from cudakit.errors import InvalidArgument
from cudakit.layout import DATA_FORMATS, MOST_ELEMENTS, Image, axes, checked_image, packed

NAMES = ("input", "offset", "mask")


class DeformOptions(NamedTuple):
    """What the operators take besides arrays; `input_size` is that of `deform_col2im`."""

    kernel_size: Integers
    moves: Window
    data_format: str
    input_size: Integers = ()
    needs: tuple[str, ...] = NAMES


def read_options(
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    data_format: Any,
    input_size: Any = (),
    needs: Any = NAMES,
) -> DeformOptions:
    """Check everything that is no array."""
    kernel = numbers("kernel_size", kernel_size, minimum=1)
    moves = window(stride, padding, dilation)
    checks.choice("data_format", data_format, DATA_FORMATS)
    size = () if isinstance(input_size, tuple) and not input_size else numbers("input_size", input_size, minimum=1)
    return DeformOptions(kernel, moves, data_format, size, checks.names("needs", needs, NAMES))


def check_im2col(input: Spec, offset: Spec, mask: Spec | None, options: DeformOptions) -> tuple[Deformation, Image]:
    """Check the arrays of `deform_im2col`."""
    x = checked_image("input", input, options.data_format, (1, 2, 3))
    n, last = len(x.space), options.data_format == "channels_last"
    kernel = per_dimension("kernel_size", options.kernel_size, n, f" for input {axes(n, last)} = {input.shape}")
    return deformation(x, offset, mask, kernel, options.moves, options.data_format), x


def check_col2im(columns: Spec, offset: Spec, mask: Spec | None, options: DeformOptions) -> Deformation:
    """Check the arrays of `deform_col2im`."""
    checks.floating("columns", columns)
    last = options.data_format == "channels_last"
    checks.dimensions("columns", columns, (3,), "(N, L, K*C)" if last else "(N, C*K, L)")
    checks.dimensions("offset", offset, (3, 4, 5), "(N, O..., G*K*n)" if last else "(N, G*K*n, O...)")
    n = len(offset.shape) - 2
    kernel = per_dimension("kernel_size", options.kernel_size, n)
    space = per_dimension("input_size", options.input_size, n)
    count = columns.shape[2 if last else 1]
    if count % prod(kernel):
        order = f"N, L, K*C={prod(kernel)}*C" if last else f"N, C*K=C*{prod(kernel)}, L"
        raise InvalidArgument("columns", f"have shape ({order})", columns.shape)
    x = packed((columns.shape[0], count // prod(kernel), *space), columns.dtype, channels_last=last)
    if prod(filter(None, x.shape)) >= MOST_ELEMENTS:
        raise InvalidArgument("input_size", "make fewer than 2**56 elements in all", checks.shown(space))
    d = deformation(x, offset, mask, kernel, options.moves, options.data_format, ("columns", "input_size"))
    check_columns("columns", columns, d)
    return d


def check_columns(argument: str, columns: Spec, d: Deformation) -> None:
    """Check columns, or their gradient, against the call that they belong to."""
    checks.same_dtype(argument, columns, "input", d.dtype)
    expected = columns_shape(d)
    names = (f"N={d.batch}", f"L={d.pixels}", f"K*C={expected[2]}")
    order = names if d.channels_last else (names[0], f"C*K={expected[1]}", names[1])
    checks.shape(argument, columns, order)


def check_image_gradient(grad: Spec, d: Deformation, options: DeformOptions) -> Image:
    """Check the gradient by what columns are added up into, and return how it lies in memory."""
    x = checked_image("grad_output", grad, options.data_format, (d.n,))
    checks.same_dtype("grad_output", grad, "columns", d.dtype)
    checks.shape("grad_output", grad, d.shape(d.channels, d.space))
    return x
