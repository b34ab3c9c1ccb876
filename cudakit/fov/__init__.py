"""Fields of view: where a unit of a stack of layers looks, through convolutions, offsets and transforms.

A spatial transformer warps its input with one transform, a deformable convolution moves every tap of every output
pixel. `sampling_positions` and `effective_receptive_field` say what that does to the field of view of one unit,
`moments` and `overlap` put it in numbers.
"""

from cudakit.fov.fields import effective_receptive_field, sampling_positions
from cudakit.fov.layers import Conv, DeformConv, SpatialTransformer
from cudakit.fov.moments import Moments, moments, overlap

__all__ = [
    "Conv",
    "DeformConv",
    "Moments",
    "SpatialTransformer",
    "effective_receptive_field",
    "moments",
    "overlap",
    "sampling_positions",
]
