"""Deformable convolution and spatial-transformer sampling for every array framework, with no build step.

Every function raises `BackendUnavailable` where CuPy or a C++ compiler is missing, and `CompileError` where a compiler
refuses a kernel.
"""

from cudakit.deformable import (
    DeformConvGradients,
    DeformIm2colGradients,
    deform_col2im,
    deform_conv1d,
    deform_conv1d_backward,
    deform_conv2d,
    deform_conv2d_backward,
    deform_conv3d,
    deform_conv3d_backward,
    deform_im2col,
    deform_im2col_backward,
)
from cudakit.errors import BackendUnavailable, CompileError
from cudakit.sampling import (
    GridSampleGradients,
    affine_grid,
    affine_grid_backward,
    grid_sample,
    grid_sample_backward,
)
from cudakit.settings import (
    are_deterministic_algorithms_enabled,
    get_num_threads,
    set_num_threads,
    use_deterministic_algorithms,
)

__all__ = [
    "BackendUnavailable",
    "CompileError",
    "DeformConvGradients",
    "DeformIm2colGradients",
    "GridSampleGradients",
    "affine_grid",
    "affine_grid_backward",
    "are_deterministic_algorithms_enabled",
    "deform_col2im",
    "deform_conv1d",
    "deform_conv1d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_conv3d",
    "deform_conv3d_backward",
    "deform_im2col",
    "deform_im2col_backward",
    "get_num_threads",
    "grid_sample",
    "grid_sample_backward",
    "set_num_threads",
    "use_deterministic_algorithms",
]
__version__ = "0.1.0"
