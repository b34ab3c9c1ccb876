"""The operators in plain float64 NumPy, written from the papers' formulas: what the kernels are tested against."""

from cudakit.reference.deformable import (
    deform_col2im,
    deform_conv,
    deform_conv_backward,
    deform_im2col,
    deform_im2col_backward,
)
from cudakit.reference.places import deform_output_size
from cudakit.reference.sampling import affine_grid, affine_grid_backward, grid_sample, grid_sample_backward

__all__ = [
    "affine_grid",
    "affine_grid_backward",
    "deform_col2im",
    "deform_conv",
    "deform_conv_backward",
    "deform_im2col",
    "deform_im2col_backward",
    "deform_output_size",
    "grid_sample",
    "grid_sample_backward",
]
