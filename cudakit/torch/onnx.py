"""Operators as those of ONNX, for ``torch.onnx.export``: AffineGrid, GridSample and DeformConv (operator set 20).

Runtimes read images of two dimensions, and GridSample's of three. So images of one dimension have one row, and
convolutions of volumes are samples and a product. What ONNX has no operator for, such as gradients, remains an operator
of cudakit, which the exporter refuses by name.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch

from cudakit.deformable.geometry import Integers, Window, paddings, per_dimension
from cudakit.op import Op
from cudakit.torch import Tensors

_MODES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


def is_exporting() -> bool:
    """Whether ``torch.onnx.export`` traces a model and takes nodes of any name (PyTorch 2.8 or newer)."""
    return torch.onnx.is_in_onnx_export() and torch.compiler.is_compiling() and hasattr(torch.onnx, "ops")


def convert(op: Op, options: Any, tensors: Tensors) -> torch.Tensor | None:
    """Return what ONNX's operators make of the arguments, or None if there are none for this one."""
    converter = _CONVERTERS.get(op.name)
    return None if converter is None else converter(options, tensors)


def _node(name: str, tensors: Tensors, attributes: dict[str, Any], shape: Sequence[int], version: int) -> Any:
    dtype = tensors[0].dtype
    return torch.onnx.ops.symbolic(name, tensors, attributes, dtype=dtype, shape=shape, version=version)


def _affine_grid(options: Any, tensors: Tensors) -> torch.Tensor:
    (theta,) = tensors
    if options.align_corners:  # runtimes look for a single pixel at an edge, not in the middle
        several = torch.stack([torch.scalar_tensor(length, dtype=torch.int64) > 1 for length in (2, *options.space)])
        theta = torch.where(several.flip(0), theta, torch.zeros_like(theta))
    sizes = (options.batch, 1, *options.space)
    size = torch.stack([torch.scalar_tensor(length, dtype=torch.int64) for length in sizes])
    shape = (options.batch, *options.space, len(options.space))
    return _node("AffineGrid", (theta, size), {"align_corners": int(options.align_corners)}, shape, 20)


def _grid_sample(options: Any, tensors: Tensors) -> torch.Tensor:
    x, grid = tensors
    line, last = x.ndim == 3, options.data_format == "channels_last"
    x = x.movedim(-1, 1) if last else x
    if line:  # y = 0 is the middle of the only row
        x, grid = x.unsqueeze(2), torch.nn.functional.pad(grid, (0, 1)).unsqueeze(1)
    found = _sample(x, grid, _MODES[options.mode], options.padding_mode, options.align_corners)
    found = found.squeeze(2) if line else found
    return found.movedim(1, -1) if last else found


def _sample(x: torch.Tensor, grid: torch.Tensor, mode: str, padding_mode: str, align_corners: bool) -> torch.Tensor:
    attributes = {"mode": mode, "padding_mode": padding_mode, "align_corners": int(align_corners)}
    return _node("GridSample", (x, grid), attributes, (*x.shape[:2], *grid.shape[1:-1]), 20)


class _Deformation(NamedTuple):
    """What says where a deformable operator looks: a number for each dimension, and tensors with the channels first."""

    kernel: Integers
    strides: Integers
    begins: Integers
    ends: Integers
    dilations: Integers
    input: torch.Tensor
    offset: torch.Tensor
    mask: torch.Tensor | None

    @property
    def groups(self) -> int:
        """Groups of offsets."""
        return self.offset.shape[1] // (prod(self.kernel) * len(self.kernel))


def _deformation(kernel: Integers, moves: Window, last: bool, tensors: Tensors) -> _Deformation:
    """Return where to look; what has one dimension gets rows, from which no offset leads away."""
    n = len(kernel)
    input, offset, mask = (t if t is None or not last else t.movedim(-1, 1) for t in tensors)
    begins, ends = paddings(moves.padding, n)
    strides, dilations = per_dimension("stride", moves.stride, n), per_dimension("dilation", moves.dilation, n)
    if n > 1:
        return _Deformation(kernel, strides, begins, ends, dilations, input, offset, mask)
    offset = torch.stack((torch.zeros_like(offset), offset), 2).flatten(1, 2)
    rows = (t if t is None else t.unsqueeze(2) for t in (input, offset, mask))
    return _Deformation((1, *kernel), (1, *strides), (0, *begins), (0, *ends), (1, *dilations), *rows)


def _convolve(d: _Deformation, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> torch.Tensor:
    """Return a convolution of images, for which all tensors get the dtype of the offsets."""
    attributes = {
        "kernel_shape": list(d.kernel),
        "strides": list(d.strides),
        "pads": [*d.begins, *d.ends],
        "dilations": list(d.dilations),
        "group": groups,
        "offset_group": d.groups,
    }
    weight = weight.reshape(*weight.shape[:2], *d.kernel)
    given = (t if t is None else t.to(d.offset.dtype) for t in (d.input, weight, d.offset, bias, d.mask))
    shape = (d.input.shape[0], weight.shape[0], *d.offset.shape[2:])
    return _node("DeformConv", tuple(given), attributes, shape, 19).to(d.input.dtype)


def _samples(d: _Deformation) -> torch.Tensor:
    """Return samples of volumes (N, C, K, L), at positions between -1 and 1 where they are inside."""
    (batch, channels, *size), out, n = d.input.shape, d.offset.shape[2:], len(d.kernel)
    offset = d.offset.to(torch.promote_types(d.offset.dtype, torch.float32)).unflatten(1, (d.groups, -1, n))
    indices = list(product(*map(range, d.kernel)))
    places: dict[str, Any] = {"dtype": offset.dtype, "device": offset.device}
    grid = []
    for axis in reversed(range(n)):  # x first
        taps = torch.tensor([index[axis] * d.dilations[axis] for index in indices], **places)
        starts = torch.arange(out[axis], **places) * d.strides[axis] - d.begins[axis]
        regular = taps.reshape(-1, *[1] * n) + starts.reshape(-1, *[1] * (n - 1 - axis))
        grid.append((2 * (offset.select(3, axis) + regular) + 1) / size[axis] - 1)
    places_of_groups = torch.stack(grid, -1).flatten(0, 1).flatten(3, 4)
    input = d.input.reshape(batch * d.groups, channels // d.groups, *size)
    found = _sample(input, places_of_groups, "linear", "zeros", False)
    if d.mask is not None:
        found = found * d.mask.to(found.dtype).reshape(-1, 1, *found.shape[2:])
    return found.reshape(batch, channels, len(indices), -1)


def _multiply(d: _Deformation, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> torch.Tensor:
    """Return a convolution of volumes."""
    columns = _samples(d).flatten(1, 2).unflatten(1, (groups, -1))
    found = weight.reshape(1, groups, weight.shape[0] // groups, -1) @ columns
    found = found.reshape(d.input.shape[0], weight.shape[0], *d.offset.shape[2:])
    return found if bias is None else found + bias.reshape(-1, *[1] * len(d.kernel))


def _deform_conv(options: Any, tensors: Tensors) -> torch.Tensor:
    input, offset, weight, bias, mask = tensors
    last, n = options.data_format == "channels_last", weight.ndim - 2
    groups = input.shape[-1 if last else 1] // weight.shape[1]
    d = _deformation(tuple(weight.shape[2:]), options.moves, last, (input, offset, mask))
    found = (_multiply if n == 3 else _convolve)(d, weight, bias, groups)
    found = found.squeeze(2) if n == 1 else found
    return found.movedim(1, -1) if last else found


def _deform_im2col(options: Any, tensors: Tensors) -> torch.Tensor:
    last, n = options.data_format == "channels_last", tensors[0].ndim - 2
    kernel = per_dimension("kernel_size", options.kernel_size, n)
    d = _deformation(kernel, options.moves, last, tensors)
    columns = _samples(d) if n == 3 else _taps(d)
    return columns.permute(0, 3, 2, 1).flatten(2) if last else columns.flatten(1, 2)


def _taps(d: _Deformation) -> torch.Tensor:
    """Return samples of images (N, C, K, L): each channel is a group whose outputs are its taps."""
    channels, taps = d.input.shape[1], prod(d.kernel)
    weight = torch.eye(taps, dtype=d.input.dtype, device=d.input.device).repeat(channels, 1).unsqueeze(1)
    return _convolve(d, weight, None, channels).unflatten(1, (channels, taps)).flatten(3)


_CONVERTERS: dict[str, Callable[[Any, Tensors], torch.Tensor]] = {
    "affine_grid": _affine_grid,
    "grid_sample": _grid_sample,
    "deform_im2col": _deform_im2col,
    **dict.fromkeys(("deform_conv1d", "deform_conv2d", "deform_conv3d"), _deform_conv),
}
