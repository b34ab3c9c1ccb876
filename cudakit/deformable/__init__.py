"""The family of deformable convolution (arXiv 1703.06211, 1811.11168): im2col with offsets, and what is built on it."""

from cudakit.deformable.convolution import DeformConvGradients, deform_conv1d, deform_conv2d, deform_conv3d
from cudakit.deformable.convolution_backward import (
    deform_conv1d_backward,
    deform_conv2d_backward,
    deform_conv3d_backward,
)
from cudakit.deformable.im2col import DeformIm2colGradients, deform_col2im, deform_im2col, deform_im2col_backward

__all__ = [
    "DeformConvGradients",
    "DeformIm2colGradients",
    "deform_col2im",
    "deform_conv1d",
    "deform_conv1d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_conv3d",
    "deform_conv3d_backward",
    "deform_im2col",
    "deform_im2col_backward",
]
