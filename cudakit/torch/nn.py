"""Layers for PyTorch: deformable convolutions, and the spatial transformer."""

import math
from typing import ClassVar

import torch
from torch import nn

import cudakit
from cudakit.checks import integers
from cudakit.deformable.geometry import numbers, per_dimension
from cudakit.errors import InvalidArgument, raised_by
from cudakit.torch.spatial_transformer import SpatialTransformer as SpatialTransformer

_FUNCTIONS = {1: cudakit.deform_conv1d, 2: cudakit.deform_conv2d, 3: cudakit.deform_conv3d}
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Integers = int | tuple[int, ...]


class _DeformConvNd(nn.Module):
    """What the deformable convolutions of n dimensions have in common: the parameters of ``nn.Conv2d``."""

    n: ClassVar[int]
    allow_tf32 = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Integers,
        stride: Integers,
        padding: Integers,
        dilation: Integers,
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.in_channels = self._number("in_channels", in_channels)
        self.out_channels = self._number("out_channels", out_channels)
        self.groups = self._groups("groups", groups, "in_channels", "out_channels")
        self.kernel_size = self._each("kernel_size", kernel_size)
        self.stride = self._each("stride", stride)
        self.padding = self._each("padding", padding, minimum=0)
        self.dilation = self._each("dilation", dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def _each(self, name: str, value: Integers, minimum: int = 1) -> tuple[int, ...]:
        """Return a number for each dimension; paddings may be those before and those behind."""
        with raised_by(type(self).__name__):
            found = numbers(name, value, minimum=minimum)
            both = name == "padding" and len(found) == 2 * self.n
            return found if both else per_dimension(name, found, self.n)

    def _number(self, name: str, value: int) -> int:
        with raised_by(type(self).__name__):
            return integers(name, (value,), "be a positive int", length=(1,), minimum=1, instead=value)[0]

    def _groups(self, name: str, value: int, *divided: str) -> int:
        """Return a number of groups, which must divide these numbers of channels."""
        groups = self._number(name, value)
        with raised_by(type(self).__name__):
            for channels in divided:
                if getattr(self, channels) % groups:
                    raise InvalidArgument(channels, f"be divisible by {name}={groups}", getattr(self, channels))
        return groups

    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def _convolve(self, input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        moves = (self.stride, self.padding, self.dilation)
        return _FUNCTIONS[self.n](input, offset, self.weight, self.bias, *moves, mask, allow_tf32=self.allow_tf32)

    def extra_repr(self) -> str:
        """Return the settings that are not the defaults, in torchvision's words."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if any(self.padding):
            parts.append(f"padding={self.padding}")
        if set(self.dilation) != {1}:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class _Given(_DeformConvNd):
    """The offsets and masks are arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Integers,
        stride: Integers = 1,
        padding: Integers = 0,
        dilation: Integers = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def forward(self, input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve.

        Parameters
        ----------
        input : Tensor, shape (N, in_channels, S...)
            Of the dtype of the weights.
        offset : Tensor, shape (N, G*K*n, O...)
            In pixels, for G groups of offsets and K taps; of that dtype or float32.
        mask : Tensor, shape (N, G*K, O...), optional
            Of the dtype of `offset`.

        Returns
        -------
        Tensor, shape (N, out_channels, O...)

        Raises
        ------
        TypeError, ValueError
            As `cudakit.deform_conv2d` does.
        """
        return self._convolve(input, offset, mask)


class DeformConv1d(_Given):
    """`DeformConv2d` in one dimension."""

    n = 1


class DeformConv2d(_Given):
    """A deformable convolution in place of ``torchvision.ops.DeformConv2d``: same arguments, parameters and drawing.

    Offsets (arXiv 1703.06211), and masks if there are any (arXiv 1811.11168), are given with every call.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    kernel_size, stride, padding, dilation : int or tuple of int
        As for ``nn.Conv2d``; `padding` may have 4 numbers: both begins, then both ends.
    groups : int
        Groups of channels that do not mix.
    bias : bool
        Whether a learnt number is added to each output channel.

    Attributes
    ----------
    allow_tf32 : bool
        That of `cudakit.deform_conv2d`, False until it is set; every layer here has it.

    Raises
    ------
    TypeError, ValueError
        If an argument is no int or tuple of ints, is out of range, or does not divide as groups must.

    Examples
    --------
    >>> import torch
    >>> layer = DeformConv2d(3, 8, kernel_size=3, padding=1)
    >>> layer
    DeformConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    >>> image, offset, mask = torch.rand(1, 3, 6, 6), torch.rand(1, 18, 6, 6), torch.rand(1, 9, 6, 6)
    >>> layer(image, offset, mask).shape
    torch.Size([1, 8, 6, 6])
    """

    n = 2


class DeformConv3d(_Given):
    """`DeformConv2d` in three dimensions."""

    n = 3


class _Pack(_DeformConvNd):
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
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.deform_groups = self._groups("deform_groups", deform_groups, "in_channels")
        self.taps = self.deform_groups * math.prod(self.kernel_size)
        channels, both = self.taps * (self.n + self.modulated), len(self.padding) == 2 * self.n
        padding = 0 if both else self.padding
        self.conv_offset = _CONVOLUTIONS[self.n](
            in_channels, channels, self.kernel_size, self.stride, padding, self.dilation
        )
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
