"""Deformable convolutions (v1: arXiv 1703.06211; v2, with a mask: arXiv 1811.11168) and their gradients."""

from typing import Any, NamedTuple

from cudakit.deformable.conv_ops import CONVOLUTIONS


class DeformConvGradients(NamedTuple):
    """Gradients of a deformable convolution; None for one not asked for, or whose array was not given."""

    input: Any
    offset: Any
    weight: Any
    bias: Any
    mask: Any


def deform_conv2d(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> Any:
    """Convolve an image with a kernel whose taps are moved by offsets.

    ``output[n, o, p] = bias[o] + sum over c, i of weight[o, c, i] columns[n, c, i, p]`` with the columns of
    `deform_im2col`: arXiv 1703.06211, equation 2, and with a mask arXiv 1811.11168, equation 1. The signature and the
    meaning are those of ``torchvision.ops.deform_conv2d``.

    Parameters
    ----------
    input : array, shape (N, C, H, W)
        The images; float16, bfloat16, float32 or float64, any strides.
    offset : array, shape (N, G*K*2, H_out, W_out)
        In pixels, for each of G groups of channels (found from the shape) and K = k_h*k_w taps: channel
        ``(g*K + i)*2 + d``, dy before dx. Of the dtype of `input`, or float32 beside half precision. A sample whose
        position is not finite is outside.
    weight : array, shape (C_out, C/groups, k_h, k_w)
        The kernels; the number of groups is found from the shape.
    bias : array, shape (C_out,), optional
        Added to the output.
    stride, padding, dilation : int or tuple of int
        As for a convolution. `padding` may have 4 numbers: both begins, then both ends.
    mask : array, shape (N, G*K, H_out, W_out), optional
        Factors of the samples, of the dtype of `offset`.
    data_format : {"channels_first", "channels_last"}
        With "channels_last", `input`, `offset`, `mask` and the result have their channels in the last dimension.
    workspace : int, optional
        Upper bound in bytes for the temporary memory of the kernels; contiguous copies of arrays whose strides they
        cannot read come on top. By default it does not grow with the batch, and stays in a CPU's cache.
    allow_tf32 : bool
        Whether products may round their factors where that is faster: float32 numbers on a GPU to TF32 (11 bits), on a
        CPU with AMX to two bfloat16 numbers (16 bits); columns beside bfloat16 weights on a CPU with AMX or AVX512_BF16
        to bfloat16 (8 bits), as a GPU always does.

    Returns
    -------
    array, shape (N, C_out, H_out, W_out)
        Of the kind, dtype and device of `input`; sums for half precision are kept in float32.

    Raises
    ------
    ValueError
        If a shape does not fit, a number or option is out of range, or `workspace` is too small.
    TypeError
        If dtypes, devices or kinds of array do not fit together, or an option is of another type.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> right = np.zeros((1, 2, 3, 3), np.float32)
    >>> right[:, 1] = 1  # every sample one pixel further to the right
    >>> cudakit.deform_conv2d(image, right, np.ones((1, 1, 1, 1), np.float32))[0, 0]
    array([[1., 2., 0.],
           [4., 5., 0.],
           [7., 8., 0.]], dtype=float32)
    """
    arrays = (input, offset, weight, bias, mask)
    return _convolve(2, arrays, stride, padding, dilation, data_format, workspace, allow_tf32)


def deform_conv1d(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> Any:
    """Convolve a sequence with a kernel whose taps are moved by offsets: `deform_conv2d` in one dimension.

    Parameters
    ----------
    input : array, shape (N, C, W)
        The sequences.
    offset : array, shape (N, G*K, W_out)
        In elements.
    weight : array, shape (C_out, C/groups, k)
        The kernels.
    bias, stride, padding, dilation, mask, data_format, workspace, allow_tf32
        As for `deform_conv2d`.

    Returns
    -------
    array, shape (N, C_out, W_out)
        Of the kind, dtype and device of `input`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line = np.array([[[1.0, 2.0, 4.0]]], np.float32)
    >>> half = np.full((1, 1, 3), 0.5, np.float32)
    >>> cudakit.deform_conv1d(line, half, np.full((1, 1, 1), 2, np.float32))
    array([[[3., 6., 4.]]], dtype=float32)
    """
    arrays = (input, offset, weight, bias, mask)
    return _convolve(1, arrays, stride, padding, dilation, data_format, workspace, allow_tf32)


def deform_conv3d(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> Any:
    """Convolve a volume with a kernel whose taps are moved by offsets: `deform_conv2d` in three dimensions.

    Parameters
    ----------
    input : array, shape (N, C, D, H, W)
        The volumes.
    offset : array, shape (N, G*K*3, D_out, H_out, W_out)
        In voxels: dz, dy, dx.
    weight : array, shape (C_out, C/groups, k_d, k_h, k_w)
        The kernels.
    bias, stride, padding, dilation, mask, data_format, workspace, allow_tf32
        As for `deform_conv2d`.

    Returns
    -------
    array, shape (N, C_out, D_out, H_out, W_out)
        Of the kind, dtype and device of `input`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> volume = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    >>> nowhere = np.zeros((1, 3, 2, 2, 2), np.float32)
    >>> cudakit.deform_conv3d(volume, nowhere, np.full((1, 1, 1, 1, 1), 2, np.float32)).ravel()
    array([ 0.,  2.,  4.,  6.,  8., 10., 12., 14.], dtype=float32)
    """
    arrays = (input, offset, weight, bias, mask)
    return _convolve(3, arrays, stride, padding, dilation, data_format, workspace, allow_tf32)


def _convolve(n: int, arrays: tuple[Any, ...], stride: Any, padding: Any, dilation: Any, *rest: Any) -> Any:
    return CONVOLUTIONS[n](arrays, stride, padding, dilation, *rest)[0]
