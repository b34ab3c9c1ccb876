"""The spatial transformer as a layer for PyTorch."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

import cudakit
from cudakit.checks import boolean, choice, integers
from cudakit.errors import InvalidArgument, raised_by
from cudakit.sampling.grid_form import MODES, PADDING_MODES


@torch.fx.wrap  # a node of its own for ``torch.fx.symbolic_trace``, which knows neither dtypes nor devices
def _wide_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the linear function in float32 at least, also under autocast."""
    dtype, kind = torch.promote_types(weight.dtype, torch.float32), input.device.type
    lowers = torch.amp.is_autocast_available(kind)  # meta tensors know no autocast
    with torch.autocast(kind, enabled=False) if lowers else nullcontext():
        return nn.functional.linear(input.to(dtype), weight.to(dtype), bias.to(dtype))


class _Affine(nn.Linear):
    """A linear layer for positions, which want more digits than half precision has."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the linear function."""
        return _wide_linear(input, self.weight, self.bias)


class SpatialTransformer(nn.Module):
    """Turns images as it finds useful: the spatial transformer (arXiv 1506.02025).

    A localisation network looks at the input, a last layer makes an affine transform of what it finds, and the input is
    sampled there. The last layer begins at the identity.

    Parameters
    ----------
    localization : nn.Module
        From a batch of images to features, of any shape beyond the batch.
    features : int
        How many features it finds in an image.
    size : tuple of int, optional
        Spatial size of the output; by default that of the input.
    n : {2, 3}
        Spatial dimensions.
    mode, padding_mode, align_corners
        As for `cudakit.grid_sample`; `align_corners` for the grid as well.

    Raises
    ------
    ValueError, TypeError
        If an argument is none of these.

    Examples
    --------
    >>> import torch
    >>> look = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5), torch.nn.AdaptiveAvgPool2d(2))
    >>> layer = SpatialTransformer(look, features=16)
    >>> image = torch.rand(2, 1, 8, 8)
    >>> torch.allclose(layer(image), image, atol=1e-5)
    True
    """

    def __init__(
        self,
        localization: nn.Module,
        features: int,
        size: tuple[int, ...] | None = None,
        n: int = 2,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        with raised_by(type(self).__name__):
            integers("n", (n,), "be 2 or 3", length=(1,), minimum=2, instead=n)
            if n > 3:
                raise InvalidArgument("n", "be 2 or 3", n)
            if size is not None:
                size = integers("size", size, f"be None or {n} positive ints", length=(n,), minimum=1)
            integers("features", (features,), "be a positive int", length=(1,), minimum=1, instead=features)
            choice("mode", mode, MODES)
            choice("padding_mode", padding_mode, PADDING_MODES)
            boolean("align_corners", align_corners)
        self.localization = localization
        self.affine = _Affine(features, n * (n + 1))
        self.size, self.n = size, n
        self.mode, self.padding_mode, self.align_corners = mode, padding_mode, align_corners
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.eye(n, n + 1).flatten())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input, sampled where the localisation network wants."""
        found = self.localization(input).flatten(1)
        theta = self.affine(found).reshape(found.shape[0], self.n, self.n + 1)
        size: Any = input.shape if self.size is None else (input.shape[0], input.shape[1], *self.size)
        grid = cudakit.affine_grid(theta, size, self.align_corners)
        return cudakit.grid_sample(input, grid, self.mode, self.padding_mode, self.align_corners)
