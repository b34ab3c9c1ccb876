"""Layers for PyTorch: deformable convolutions, and the spatial transformer."""

from cudakit.torch.convolutions import DeformConv1d as DeformConv1d
from cudakit.torch.convolutions import DeformConv2d as DeformConv2d
from cudakit.torch.convolutions import DeformConv3d as DeformConv3d
from cudakit.torch.packs import DeformConv1dPack as DeformConv1dPack
from cudakit.torch.packs import DeformConv2dPack as DeformConv2dPack
from cudakit.torch.packs import DeformConv3dPack as DeformConv3dPack
from cudakit.torch.packs import ModulatedDeformConv1dPack as ModulatedDeformConv1dPack
from cudakit.torch.packs import ModulatedDeformConv2dPack as ModulatedDeformConv2dPack
from cudakit.torch.packs import ModulatedDeformConv3dPack as ModulatedDeformConv3dPack
from cudakit.torch.spatial_transformer import SpatialTransformer as SpatialTransformer
