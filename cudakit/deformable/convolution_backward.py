"""The gradients of the deformable convolutions."""

from typing import Any

from cudakit.deformable.conv_ops import CONVOLUTIONS, NAMES
from cudakit.deformable.convolution import DeformConvGradients


def deform_conv2d_backward(
    grad_output: Any,
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    needs: Any = NAMES,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> DeformConvGradients:
    """Return the gradients of `deform_conv2d`.

    One pass over tiles of pixels computes what is needed of them; columns are sampled once and never leave the cache
    (on a CPU).

    Parameters
    ----------
    grad_output : array, shape (N, C_out, H_out, W_out)
        The gradient by the output, of the dtype of `input`.
    input, offset, weight, bias, stride, padding, dilation, mask, data_format, workspace, allow_tf32
        As for `deform_conv2d`.
    needs : collection of {"input", "offset", "weight", "bias", "mask"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    DeformConvGradients
        A named tuple (input, offset, weight, bias, mask), each of its argument's shape and dtype. At an integer
        coordinate the slope is the right-hand one. On a CPU the additions come in the same order on every run with the
        same number of threads; on a GPU those to `input` are atomic, in no fixed order, unless
        `cudakit.use_deterministic_algorithms` asks for one result.

    Raises
    ------
    ValueError, TypeError
        As for `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> half = np.full((1, 2, 2, 2), 0.5, np.float32)
    >>> kernel = np.ones((1, 1, 2, 2), np.float32)
    >>> gradients = cudakit.deform_conv2d_backward(
    ...     np.ones((1, 1, 2, 2), np.float32), image, np.repeat(half, 4, 1), kernel, needs=("weight",)
    ... )
    >>> gradients.weight
    array([[[[16., 14.],
             [18., 15.]]]], dtype=float32)
    >>> gradients.input is None
    True
    """
    arrays = (grad_output, input, offset, weight, bias, mask)
    return _differentiate(2, arrays, stride, padding, dilation, data_format, workspace, allow_tf32, needs)


def deform_conv1d_backward(
    grad_output: Any,
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    needs: Any = NAMES,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> DeformConvGradients:
    """Return the gradients of `deform_conv1d`.

    Parameters
    ----------
    grad_output : array, shape (N, C_out, W_out)
        The gradient by the output, of the dtype of `input`.
    input, offset, weight, bias, stride, padding, dilation, mask, data_format, workspace, allow_tf32
        As for `deform_conv1d`.
    needs : collection of {"input", "offset", "weight", "bias", "mask"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    DeformConvGradients
        As for `deform_conv2d_backward`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> line, half = np.array([[[1.0, 2.0, 4.0]]], np.float32), np.full((1, 1, 3), 0.5, np.float32)
    >>> ones = np.ones_like(line)
    >>> cudakit.deform_conv1d_backward(ones, line, half, np.ones((1, 1, 1), np.float32)).offset
    array([[[ 1.,  2., -4.]]], dtype=float32)
    """
    arrays = (grad_output, input, offset, weight, bias, mask)
    return _differentiate(1, arrays, stride, padding, dilation, data_format, workspace, allow_tf32, needs)


def deform_conv3d_backward(
    grad_output: Any,
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Any = None,
    *,
    needs: Any = NAMES,
    data_format: str = "channels_first",
    workspace: int | None = None,
    allow_tf32: bool = False,
) -> DeformConvGradients:
    """Return the gradients of `deform_conv3d`.

    Parameters
    ----------
    grad_output : array, shape (N, C_out, D_out, H_out, W_out)
        The gradient by the output, of the dtype of `input`.
    input, offset, weight, bias, stride, padding, dilation, mask, data_format, workspace, allow_tf32
        As for `deform_conv3d`.
    needs : collection of {"input", "offset", "weight", "bias", "mask"}
        Which gradients to compute; the others cost nothing.

    Returns
    -------
    DeformConvGradients
        As for `deform_conv2d_backward`.

    Raises
    ------
    ValueError, TypeError
        As for `deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, cudakit
    >>> volume, nowhere = np.ones((1, 1, 2, 2, 2), np.float32), np.zeros((1, 3, 2, 2, 2), np.float32)
    >>> cudakit.deform_conv3d_backward(volume, volume, nowhere, np.ones((1, 1, 1, 1, 1), np.float32)).weight.item()
    8.0
    """
    arrays = (grad_output, input, offset, weight, bias, mask)
    return _differentiate(3, arrays, stride, padding, dilation, data_format, workspace, allow_tf32, needs)


def _differentiate(
    n: int, arrays: tuple[Any, ...], stride: Any, padding: Any, dilation: Any, *rest: Any
) -> DeformConvGradients:
    backward = CONVOLUTIONS[n].backward
    assert backward is not None
    return DeformConvGradients(*backward(arrays, stride, padding, dilation, *rest))
