"""Layers for PyTorch: deformable convolutions, and the spatial transformer."""

from cudakit.torch.convolutions import DeformConv1d, DeformConv2d, DeformConv3d
from cudakit.torch.packs import (
    DeformConv1dPack,
    DeformConv2dPack,
    DeformConv3dPack,
    ModulatedDeformConv1dPack,
    ModulatedDeformConv2dPack,
    ModulatedDeformConv3dPack,
)
from cudakit.torch.spatial_transformer import SpatialTransformer

__all__ = [
    "DeformConv1d",
    "DeformConv1dPack",
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformConv3d",
    "DeformConv3dPack",
    "ModulatedDeformConv1dPack",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformConv3dPack",
    "SpatialTransformer",
]
