"""im2col with offsets (arXiv 1703.06211, 1811.11168), its adjoint, and their gradients."""

from typing import Any, NamedTuple

from cudakit.deformable.column_checks import NAMES
from cudakit.deformable.column_ops import DEFORM_COL2IM, DEFORM_IM2COL, DEFORM_IM2COL_BACKWARD


class DeformIm2colGradients(NamedTuple):
    """Gradients of `deform_im2col`; None for one that was not asked for, or whose array was not given."""

    input: Any
    offset: Any
    mask: Any


def deform_im2col(
    input: Any,
    offset: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
) -> Any:
    """Sample the columns that a deformable convolution multiplies with its weights.

    ``columns[n, c, i, o] = mask[n, g, i, o] * input[n, c](p)`` at the positions ``p_d = o_d stride_d - padding_d +
    i_d dilation_d + offset_d`` (arXiv 1703.06211, equation 2; the mask: arXiv 1811.11168, equation 1). Samples are
    linear; what lies outside of `input` counts as zero and is not read.

    Parameters
    ----------
    input : array, shape (N, C, S...)
        The images, with n = 1, 2 or 3 spatial dimensions S; float16, bfloat16, float32 or float64, any strides.
    offset : array, shape (N, G*K*n, O...)
        In pixels, for each of G groups of channels and K = prod(kernel_size) taps: channel ``(g*K + i)*n + d`` with
        the slowest dimension d first (dy before dx). Of the dtype of `input`, or float32 beside half precision. A
        sample whose position is not finite is outside.
    kernel_size, stride, padding, dilation : int or tuple of int
        As for a convolution. `padding` may have 2n numbers: all begins, then all ends.
    mask : array, shape (N, G*K, O...), optional
        Factors of the samples, of the dtype of `offset`.
    data_format : {"channels_first", "channels_last"}
        With "channels_last", `input` is (N, S..., C), `offset` (N, O..., G*K*n), `mask` (N, O..., G*K) and the result
        (N, L, K*C) with the channel fastest.

    Returns
    -------
    array, shape (N, C*K, L)
        With L = prod(O), in the order of ``torch.nn.functional.unfold``; of the kind, dtype and device of `input`.

    Raises
    ------
    ValueError
        If a shape does not fit, or a number or option is out of range.
    TypeError
        If dtypes, devices or kinds of array do not fit together, or an option is of another type.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line = np.array([[[1.0, 2.0, 4.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_im2col(line, half_a_pixel, 1)
    array([[[1.5, 3. , 2. ]]], dtype=float32)
    """
    return DEFORM_IM2COL((input, offset, mask), kernel_size, stride, padding, dilation, data_format)[0]


def deform_col2im(
    columns: Any,
    offset: Any,
    input_size: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
) -> Any:
    """Add columns up into an image: the adjoint of `deform_im2col` in its input.

    Parameters
    ----------
    columns : array, shape (N, C*K, L)
        What to add; with "channels_last", (N, L, K*C) with the channel fastest. float16, bfloat16, float32 or float64.
    offset : array, shape (N, G*K*n, O...)
        As for `deform_im2col`.
    input_size : int or tuple of int
        The spatial sizes S of the result.
    kernel_size, stride, padding, dilation, mask, data_format
        As for `deform_im2col`.

    Returns
    -------
    array, shape (N, C, S...)
        Of the kind, dtype and device of `columns`; sums for half precision are kept in float32. On a CPU the additions
        come in the same order on every run with the same number of threads; on a GPU they are atomic, in no fixed
        order, unless `cudakit.use_deterministic_algorithms` asks for one result.

    Raises
    ------
    ValueError, TypeError
        As for `deform_im2col`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> columns = np.array([[[1.0, 1.0, 1.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_col2im(columns, half_a_pixel, (3,), 1)
    array([[[0.5, 1. , 1. ]]], dtype=float32)
    """
    arrays = (columns, offset, mask)
    return DEFORM_COL2IM(arrays, kernel_size, stride, padding, dilation, data_format, input_size)[0]


def deform_im2col_backward(
    grad_columns: Any,
    input: Any,
    offset: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    needs: Any = NAMES,
    data_format: str = "channels_first",
) -> DeformIm2colGradients:
    """Return the gradients of `deform_im2col`.

    Parameters
    ----------
    grad_columns : array, shape (N, C*K, L)
        The gradient by the columns, of the dtype of `input`.
    input, offset, kernel_size, stride, padding, dilation, mask, data_format
        As for `deform_im2col`.
    needs : collection of {"input", "offset", "mask"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    DeformIm2colGradients
        A named tuple (input, offset, mask), each of its argument's shape and dtype. At an integer coordinate the slope
        is the right-hand one. Sums as for `deform_col2im`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_im2col`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line = np.array([[[1.0, 2.0, 4.0]]], np.float32)
    >>> half_a_pixel = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_im2col_backward(np.ones((1, 1, 3), np.float32), line, half_a_pixel, 1).offset
    array([[[ 1.,  2., -4.]]], dtype=float32)
    """
    arrays = (grad_columns, input, offset, mask)
    options = (kernel_size, stride, padding, dilation, data_format, (), needs)
    return DeformIm2colGradients(*DEFORM_IM2COL_BACKWARD(arrays, *options))
