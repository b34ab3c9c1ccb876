"""Layers of deformable convolution for PyTorch that make their own offsets."""

import math
from typing import Any, ClassVar

import torch
from torch import nn

from cudakit.torch.convolutions import DeformConvNd, Integers

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Pack(DeformConvNd):
    """The offsets, and the masks of a `modulated` one, come from a convolution of the input, `conv_offset`."""

    modulated: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Integers,
        stride: Integers = 1,
        padding: Integers = 0,
        dilation: Integers = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype)
        self.deform_groups = self._groups("deform_groups", deform_groups, "in_channels")
        self.taps = self.deform_groups * math.prod(self.kernel_size)
        channels, both = self.taps * (self.n + self.modulated), len(self.padding) == 2 * self.n
        padding = 0 if both else self.padding
        moves = (self.kernel_size, self.stride, padding, self.dilation)
        self.conv_offset = _CONVOLUTIONS[self.n](in_channels, channels, *moves, device=device, dtype=dtype)
        # In the order of `torch.nn.functional.pad`, where an ordinary convolution cannot pad so by itself.
        edges = zip(self.padding[self.n - 1 :: -1], self.padding[: self.n - 1 : -1], strict=True) if both else ()
        self._edges = tuple(number for pair in edges for number in pair)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve with offsets that the input itself decides on.

        Parameters
        ----------
        input : Tensor, shape (N, in_channels, S...)
            Of the dtype of the weights.

        Returns
        -------
        Tensor, shape (N, out_channels, O...)
        """
        found = self.conv_offset(nn.functional.pad(input, self._edges) if self._edges else input)
        mask = found[:, self.n * self.taps :].sigmoid() if self.modulated else None
        return self._convolve(input, found[:, : self.n * self.taps], mask)


class DeformConv1dPack(_Pack):
    """`DeformConv2dPack` in one dimension."""

    n = 1


class DeformConv2dPack(_Pack):
    """A deformable convolution that makes its own offsets (arXiv 1703.06211), with mmcv's arguments and parameters.

    The offsets come from an ordinary convolution of the same geometry, `conv_offset`. It begins at zero, so that the
    layer begins as an ordinary convolution. With ``bias=False`` it takes the weights of mmcv's layer of the same name.
    Under ``torch.autocast`` that convolution is computed in half precision, as any is, and so its offsets are rounded.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    kernel_size, stride, padding, dilation : int or tuple of int
        As for `DeformConv2d`.
    groups, deform_groups : int
        Groups of channels that do not mix, and groups that have offsets of their own.
    bias : bool
        Whether a learnt number is added to each output channel.
    device, dtype
        Of the parameters; by default PyTorch's own defaults.

    Raises
    ------
    TypeError, ValueError
        As `DeformConv2d` does.

    Examples
    --------
    >>> import torch
    >>> layer = DeformConv2dPack(3, 8, kernel_size=3, padding=1)
    >>> image = torch.rand(1, 3, 6, 6)
    >>> ordinary = torch.nn.functional.conv2d(image, layer.weight, layer.bias, padding=1)
    >>> torch.allclose(layer(image), ordinary, atol=1e-5)
    True
    """

    n = 2


class DeformConv3dPack(_Pack):
    """`DeformConv2dPack` in three dimensions."""

    n = 3


class ModulatedDeformConv1dPack(DeformConv1dPack):
    """`ModulatedDeformConv2dPack` in one dimension."""

    modulated = True


class ModulatedDeformConv2dPack(DeformConv2dPack):
    """`DeformConv2dPack` that also weighs its samples (arXiv 1811.11168), with the parameters of mmcv's.

    The last channels of `conv_offset` are masks before a sigmoid, so that every sample begins at half its weight. The
    arguments are those of `DeformConv2dPack`.

    Examples
    --------
    >>> import torch
    >>> ModulatedDeformConv2dPack(4, 8, 3, deform_groups=2).conv_offset
    Conv2d(4, 54, kernel_size=(3, 3), stride=(1, 1))
    """

    modulated = True


class ModulatedDeformConv3dPack(DeformConv3dPack):
    """`ModulatedDeformConv2dPack` in three dimensions."""

    modulated = True
