"""The family of spatial transformers (arXiv 1506.02025): the grid generator and the sampler."""

from cudakit.sampling.affine import affine_grid, affine_grid_backward
from cudakit.sampling.grid import GridSampleGradients, grid_sample, grid_sample_backward

__all__ = ["GridSampleGradients", "affine_grid", "affine_grid_backward", "grid_sample", "grid_sample_backward"]
