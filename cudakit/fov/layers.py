"""The layers of a stack as its user writes them: plain data, from the input to the output."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conv:
    """A convolution, dilated or not.

    Parameters
    ----------
    kernel_size, stride, padding, dilation : int or tuple of int
        As for a convolution. `padding` may have 2n numbers: all begins, then all ends.

    Examples
    --------
    >>> from cudakit.fov import Conv, sampling_positions
    >>> sampling_positions([Conv(dilation=2)], (9,), (2,))[0].T
    array([[2., 4., 6.]])
    """

    kernel_size: Any = 3
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1


@dataclass(frozen=True, eq=False)
class DeformConv:
    """A deformable convolution (v1: arXiv 1703.06211; v2, with a mask: arXiv 1811.11168) with given offsets.

    Parameters
    ----------
    offset : array, shape (1, G*K*n, O...)
        In pixels, of one image, as `cudakit.deform_conv2d` takes it; of any DLPack framework.
    kernel_size, stride, padding, dilation : int or tuple of int
        As for `Conv`.
    mask : array, shape (1, G*K, O...), optional
        Factors of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> from cudakit.fov import DeformConv, sampling_positions
    >>> offset = np.array([-0.5, 0.0, 0.5]).reshape(1, 3, 1).repeat(7, axis=2)
    >>> sampling_positions([DeformConv(offset)], (9,), (2,))[0].T
    array([[1.5, 3. , 4.5]])
    """

    offset: Any
    kernel_size: Any = 3
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    mask: Any = None


@dataclass(frozen=True, eq=False)
class SpatialTransformer:
    """A spatial transformer (arXiv 1506.02025) with a given transform: an affine one, or any grid.

    Parameters
    ----------
    theta : array, shape (1, n, n + 1)
        The affine transform, as `cudakit.affine_grid` takes it, also for n = 1; of any DLPack framework.
    grid : array, shape (1, O..., n)
        In the place of `theta`: where each output pixel looks, x first, as `cudakit.grid_sample` takes it.
    mode, padding_mode, align_corners
        As for `cudakit.grid_sample`.
    size : tuple of int, optional
        The output's sizes O where `theta` is given; by default those of the input.

    Examples
    --------
    >>> import numpy as np
    >>> from cudakit.fov import SpatialTransformer, sampling_positions
    >>> zoom = SpatialTransformer(theta=np.array([[[0.5, 0.0]]]))
    >>> sampling_positions([zoom], (9,), (0,))[0]
    array([[2.]])
    """

    theta: Any = None
    grid: Any = None
    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    size: Any = None


Layer = Conv | DeformConv | SpatialTransformer
