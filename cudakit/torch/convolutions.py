"""Layers of deformable convolution for PyTorch whose offsets are given."""

import math
from typing import Any, ClassVar

import torch
from torch import nn

import cudakit
from cudakit.checks import boolean, integers
from cudakit.deformable.geometry import numbers, per_dimension
from cudakit.errors import InvalidArgument, raised_by

_FUNCTIONS = {1: cudakit.deform_conv1d, 2: cudakit.deform_conv2d, 3: cudakit.deform_conv3d}
Integers = int | tuple[int, ...]


class DeformConvNd(nn.Module):
    """What the deformable convolutions of n dimensions have in common: the parameters of ``nn.Conv2d``."""

    n: ClassVar[int]
    allow_tf32 = False

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
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = self._number("in_channels", in_channels)
        self.out_channels = self._number("out_channels", out_channels)
        self.groups = self._groups("groups", groups, "in_channels", "out_channels")
        self.kernel_size = self._each("kernel_size", kernel_size)
        self.stride = self._each("stride", stride)
        self.padding = self._each("padding", padding, minimum=0)
        self.dilation = self._each("dilation", dilation)
        with raised_by(type(self).__name__):
            boolean("bias", bias)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        added = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", added)
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


class _Given(DeformConvNd):
    """The offsets and masks are arguments."""

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
    device, dtype
        Of the parameters; by default PyTorch's own defaults.

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
