r"""The deformable operators in plain float64 NumPy: what the kernels are tested against.

Written from the formulas of [1]_ and [2]_ and sharing no code with the kernels, for 1, 2 or 3 dimensions, channels
first. Everything is computed in float64, whatever comes in.

In dimension d, output pixel o and kernel index i look at the input's pixel coordinate

.. math:: p_d = o_d \, stride_d - pad_d + i_d \, dilation_d + \Delta_d

A sample there is n-linear, every pixel outside the input counts as 0, and the mask multiplies it. A coordinate that is
not finite samples nothing: value 0, gradients 0. At an integer coordinate the slope is the right-hand one.

Offsets have the channels ``(g * K + i) * n + d`` and masks ``g * K + i``, for offset group g and the K kernel indices i
in row-major order; columns have the channels ``c * K + i``.

References
----------
.. [1] J. Dai et al., "Deformable Convolutional Networks", arXiv:1703.06211.
.. [2] X. Zhu, H. Hu, S. Lin, J. Dai, "Deformable ConvNets v2: More Deformable, Better Results", arXiv:1811.11168.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cudakit.reference.places import Numbers, places
from cudakit.reference.taps import Floats, Taps, add_at, product


class ColumnGradients(NamedTuple):
    """Gradients of `deform_im2col`, of the shapes of its arguments; None for a mask that was not given."""

    input: Floats
    offset: Floats
    mask: Floats | None


class ConvolutionGradients(NamedTuple):
    """Gradients of `deform_conv`, of the shapes of its arguments; None for one that was not given."""

    input: Floats
    offset: Floats
    weight: Floats
    bias: Floats | None
    mask: Floats | None


def deform_im2col(
    input: ArrayLike,
    offset: ArrayLike,
    kernel_size: Sequence[int],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    mask: ArrayLike | None = None,
) -> Floats:
    """Sample `input` wherever a deformable kernel looks.

    Parameters
    ----------
    input : array_like, shape (N, C, S...)
    offset : array_like, shape (N, G * K * n, O...)
        How far from its regular place each sample lies, in pixels; G groups of channels have offsets of their own.
    kernel_size : n ints, whose product is K
    stride, dilation : int or n ints
    padding : int, n ints, or 2 n ints (all begins, then all ends)
    mask : array_like, shape (N, G * K, O...), optional
        What each sample is multiplied by.

    Returns
    -------
    ndarray, shape (N, C * K, L), with L the product of the sizes O

    Examples
    --------
    >>> deform_im2col([[[10, 20, 30]]], [[[0.5, 0.0], [0.0, 0.25]]], (2,)).tolist()
    [[[15.0, 20.0], [20.0, 22.5]]]
    """
    look = places(np.shape(input), offset, kernel_size, stride, padding, dilation, mask)
    pixels = look.image(input)
    values = np.zeros((*pixels.shape[:2], look.mask.shape[-1]))
    for index, valid, taps in look.corners():
        values += product(valid, look.mask, _weight(taps), np.take_along_axis(pixels, index, axis=2))
    return look.columns(values)


def deform_col2im(
    columns: ArrayLike,
    offset: ArrayLike,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    mask: ArrayLike | None = None,
) -> Floats:
    """Add columns up where `deform_im2col` would have read them: its adjoint in `input`.

    Parameters
    ----------
    columns : array_like, shape (N, C * K, L)
    input_size : n ints, the sizes S of the result
    offset, kernel_size, stride, padding, dilation, mask
        As for `deform_im2col`.

    Returns
    -------
    ndarray, shape (N, C, S...)

    Examples
    --------
    >>> deform_col2im([[[1, 2], [3, 4]]], [[[0.5, 0.0], [0.0, 0.25]]], (3,), (2,)).tolist()
    [[[0.5, 5.5, 3.0]]]
    """
    batch, rows, _ = np.shape(columns)
    shape = (batch, rows // prod(kernel_size), *input_size)
    look = places(shape, offset, kernel_size, stride, padding, dilation, mask)
    values = look.samples(columns)
    image = np.zeros((*values.shape[:2], prod(input_size)))
    for index, valid, taps in look.corners():
        add_at(image, index, product(valid, look.mask, _weight(taps), values))
    return image.reshape(shape)


def deform_im2col_backward(
    grad_columns: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    kernel_size: Sequence[int],
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    mask: ArrayLike | None = None,
) -> ColumnGradients:
    """Return the gradients of `deform_im2col` with respect to `input`, `offset` and `mask`.

    ``grad_offset_d`` sums ``grad * mask * input[i] * w_d' * product of the other weights`` over the corners and the
    channels of an offset group, ``grad_mask`` sums ``grad * value``, and ``grad_input`` is the adjoint.

    Examples
    --------
    >>> gradients = deform_im2col_backward([[[1.0]]], [[[10, 20, 30]]], [[[0.5]]], (1,), stride=3, mask=[[[2.0]]])
    >>> [gradient.tolist() for gradient in gradients]
    [[[[1.0, 1.0, 0.0]]], [[[20.0]]], [[[15.0]]]]
    """
    look = places(np.shape(input), offset, kernel_size, stride, padding, dilation, mask)
    pixels, grad = look.image(input), look.samples(grad_columns)
    flat = (len(grad), grad.shape[2])
    grad_offset, grad_mask = np.zeros((*flat, len(look.axes))), np.zeros(flat)
    for index, valid, taps in look.corners():
        values = np.take_along_axis(pixels, index, axis=2)
        grad_mask += product(valid, _weight(taps), values, grad).sum(axis=1)
        for d in range(len(taps)):
            grad_offset[..., d] += product(valid, look.mask, _weight(taps, d), values, grad).sum(axis=1)
    by_dimension = np.moveaxis(grad_offset.reshape(len(grad), look.kernel, look.pixels, len(look.axes)), -1, 2)
    return ColumnGradients(
        deform_col2im(grad_columns, offset, np.shape(input)[2:], kernel_size, stride, padding, dilation, mask),
        by_dimension.reshape(np.shape(offset)),
        None if mask is None else grad_mask.reshape(np.shape(mask)),
    )


def deform_conv(
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    mask: ArrayLike | None = None,
) -> Floats:
    """Convolve `input` with a kernel whose every tap looks where `offset` sends it.

    Parameters
    ----------
    weight : array_like, shape (C_out, C / groups, k...)
    bias : array_like, shape (C_out,), optional
    input, offset, stride, padding, dilation, mask
        As for `deform_im2col`.

    Returns
    -------
    ndarray, shape (N, C_out, O...)

    Examples
    --------
    >>> deform_conv([[[10, 20, 30]]], [[[0.5, 0.0], [0.0, 0.25]]], [[[1, 2]]], bias=[100]).tolist()
    [[[155.0, 165.0]]]
    """
    columns = deform_im2col(input, offset, np.shape(weight)[2:], stride, padding, dilation, mask)
    matrices, grouped = _by_group(weight, columns)
    shape = (len(columns), matrices.shape[0] * matrices.shape[1], *np.shape(offset)[2:])
    output: Floats = (matrices @ grouped).reshape(shape)
    return output if bias is None else output + np.reshape(bias, (-1, *[1] * (len(shape) - 2)))


def deform_conv_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    mask: ArrayLike | None = None,
) -> ConvolutionGradients:
    """Return the gradients of `deform_conv` with respect to all its arrays.

    Examples
    --------
    >>> image, offset, weight = [[[10, 20, 30]]], [[[0.5, 0.0], [0.0, 0.25]]], [[[1, 2]]]
    >>> gradients = deform_conv_backward([[[1, 1]]], image, offset, weight, bias=[100])
    >>> gradients.weight.tolist(), gradients.bias.tolist(), gradients.offset.tolist()
    ([[[35.0, 42.5]]], [2.0], [[[10.0, 10.0], [20.0, -60.0]]])
    """
    geometry = (np.shape(weight)[2:], stride, padding, dilation, mask)
    columns = deform_im2col(input, offset, *geometry)
    matrices, grouped = _by_group(weight, columns)
    grad = np.asarray(grad_output, np.float64).reshape(len(columns), *matrices.shape[:2], columns.shape[-1])
    grad_columns = (matrices.mT @ grad).reshape(columns.shape)
    by_input, by_offset, by_mask = deform_im2col_backward(grad_columns, input, offset, *geometry)
    return ConvolutionGradients(
        by_input,
        by_offset,
        (grad @ grouped.mT).sum(axis=0).reshape(np.shape(weight)),
        None if bias is None else grad.sum(axis=(0, 3)).ravel(),
        by_mask,
    )


def _by_group(weight: ArrayLike, columns: Floats) -> tuple[Floats, Floats]:
    """Weights as (groups, C_out/groups, C/groups*K), and columns as (N, groups, C/groups*K, L)."""
    kernels = np.asarray(weight, np.float64)
    rows = prod(kernels.shape[1:])
    groups = columns.shape[1] // rows if rows else 1  # without channels any number would do
    matrices = kernels.reshape(groups, len(kernels) // groups, rows)
    return matrices, columns.reshape(len(columns), groups, rows, columns.shape[2])


def _weight(taps: list[Taps], slope: int | None = None) -> Floats:
    """Product of the weights of a corner, with the slope in the place of one of them."""
    weight: Floats = np.prod([tap.slope if d == slope else tap.weight for d, tap in enumerate(taps)], axis=0)
    return weight
