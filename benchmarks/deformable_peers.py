"""What cudakit's deformable convolution is measured beside.

The sides that are made of torch take NumPy arrays or tensors, and compute where those lie.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Array, Arrays, Prepared, Row, to_numpy
from .peers import load, onnxruntime_call, openvino_call

GRADIENTS = ("input", "offset", "weight", "mask")  # in the order of cudakit's


def _tensors(row: Row, arrays: Arrays) -> dict[str, Any]:
    """Return the same memory as tensors in torch's order of dimensions."""
    torch = load("torch")
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    if not row.case.last:
        return tensors
    return {name: tensor if name == "weight" else tensor.movedim(-1, 1) for name, tensor in tensors.items()}


def _results(row: Row) -> Callable[[Any], tuple[Array, ...]]:
    """Return how an output, or gradients, of torch become arrays in cudakit's layout."""

    def results(value: Any) -> tuple[Array, ...]:
        found = to_numpy(value)
        if not row.case.last:
            return found
        return tuple(
            array if name == "weight" else np.moveaxis(array, 1, -1)
            for name, array in zip(GRADIENTS, found, strict=False)
        )

    return results


def torchvision(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare `torchvision.ops.deform_conv2d`, or the operator that its backward pass calls."""
    torch, vision, case = load("torch"), load("torchvision.ops"), row.case
    if case.columns:
        return None
    tensors = _tensors(row, arrays)
    x, offset, weight = (tensors[name] for name in GRADIENTS[:3])
    mask = tensors.get("mask")
    if not case.backward:
        return Prepared(lambda: vision.deform_conv2d(x, offset, weight, None, 1, case.padding, 1, mask), _results(row))
    bias = weight.new_zeros(case.outputs)
    masks = weight.new_zeros(len(x), 1) if mask is None else mask
    options = (1, 1, case.padding, case.padding, 1, 1, case.groups, case.offset_groups, case.mask)
    backward = torch.ops.torchvision._deform_conv2d_backward

    def call() -> tuple[Any, ...]:
        grads = backward(tensors["grad_output"], x, weight, offset, masks, bias, *options)
        return grads[0], grads[2], grads[1], grads[3] if case.mask else None

    return Prepared(call, _results(row))


def sampled(case: Any, x: Any, offset: Any, mask: Any) -> Any:
    """Return the samples (N, C, K, L) by `grid_sample`, each group of offsets as an image of its own."""
    torch = load("torch")
    batch, channels, height, width = x.shape
    groups, taps, kernel = case.offset_groups, case.taps, case.kernel
    shifts = offset.reshape(batch * groups, taps, 2, height, width)
    steps = torch.arange(kernel, device=x.device, dtype=x.dtype) - case.padding
    lines = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    pixels = torch.arange(width, device=x.device, dtype=x.dtype)
    y = lines + steps.repeat_interleave(kernel)[:, None, None] + shifts[:, :, 0]
    x_ = pixels + steps.repeat(kernel)[:, None, None] + shifts[:, :, 1]
    grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    found = torch.nn.functional.grid_sample(
        x.reshape(batch * groups, channels // groups, height, width),
        grid.reshape(batch * groups, taps * height, width, 2),
        align_corners=False,
    ).reshape(batch, groups, channels // groups, taps, height, width)
    if mask is not None:
        found = found * mask.reshape(batch, groups, 1, taps, height, width)
    return found.reshape(batch, channels, taps, height * width)


def _composite(case: Any, x: Any, offset: Any, weight: Any, mask: Any) -> Any:
    columns = sampled(case, x, offset, mask).reshape(len(x), case.groups, -1, x.shape[2] * x.shape[3])
    product = weight.reshape(case.groups, case.outputs // case.groups, -1) @ columns
    return product.reshape(len(x), case.outputs, *x.shape[2:])


def torch_composite(row: Row, arrays: Arrays, _: int) -> Prepared:
    """Prepare `grid_sample` and a matrix product, with autograd behind them."""
    torch, case = load("torch"), row.case
    tensors = _tensors(row, arrays)
    values = [tensors.get(name) for name in GRADIENTS]
    if case.columns:
        return Prepared(lambda: _columns(case, *values), to_numpy)
    if not case.backward:
        return Prepared(lambda: _composite(case, *values), _results(row))
    leaves = [None if value is None else value.detach().requires_grad_() for value in values]
    output, grad = _composite(case, *leaves), tensors["grad_output"]
    given = [leaf for leaf in leaves if leaf is not None]
    return Prepared(lambda: torch.autograd.grad(output, given, grad, retain_graph=True), _results(row))


def _columns(case: Any, x: Any, offset: Any, _: Any, mask: Any) -> Any:
    """Return columns (N, C·K, L), or with channels last (N, L, K·C)."""
    samples = sampled(case, x, offset, mask)
    return samples.permute(0, 3, 2, 1).flatten(2) if case.last else samples.flatten(1, 2)


def dense_conv(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare the ordinary convolution of the same shape."""
    torch, case = load("torch"), row.case
    if case.columns:
        return None
    tensors = _tensors(row, arrays)
    x, weight, grad = tensors["input"], tensors["weight"], tensors.get("grad_output")
    if not case.backward:
        return Prepared(lambda: torch.nn.functional.conv2d(x, weight, None, 1, case.padding, 1, case.groups), to_numpy)
    backward, pads = torch.ops.aten.convolution_backward, [case.padding] * 2
    options = ([1, 1], pads, [1, 1], False, [0, 0], case.groups, [True, True, False])
    return Prepared(lambda: backward(grad, x, weight, None, *options), to_numpy)


def gemm_only(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare the matrix products of weights and ready columns; those without groups are not batched by them."""
    torch, case = load("torch"), row.case
    if case.columns or case.backward:
        return None
    batch, channels, height, width = case.shape
    depth = channels // case.groups * case.taps
    weight = torch.as_tensor(arrays["weight"]).reshape(case.groups, -1, depth).squeeze(0)
    columns = weight.new_empty(batch, case.groups, depth, height * width).normal_().squeeze((0, 1))
    return Prepared(lambda: weight @ columns, to_numpy)


def copy_only(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare a copy of as many columns."""
    torch, case = load("torch"), row.case
    if not case.columns:
        return None
    batch, channels, height, width = case.shape
    columns = torch.as_tensor(arrays["input"]).new_ones(batch, channels * case.taps, height * width)
    return Prepared(columns.clone, to_numpy)


def openvino(row: Row, arrays: Arrays, threads: int) -> Prepared | None:
    """Prepare OpenVINO's DeformableConvolution-8."""
    case = row.case
    if case.columns or case.backward or case.last:
        return None
    names = [name for name in GRADIENTS if name in arrays]
    pads = [case.padding] * 2

    def build(opset: Any, *parameters: Any) -> Any:
        given = dict(zip(names, parameters, strict=True))
        return opset.deformable_convolution(
            *(given[name] for name in ("input", "offset", "weight")),
            *([1, 1], pads, pads, [1, 1]),
            given.get("mask"),
            group=case.groups,
            deformable_group=case.offset_groups,
            bilinear_interpolation_pad=True,
        )

    call = openvino_call(build, tuple(arrays[name] for name in names), threads)
    return Prepared(call, lambda found: to_numpy(list(found.values())))


def onnxruntime(row: Row, arrays: Arrays, threads: int) -> Prepared | None:
    """Prepare ONNX Runtime's DeformConv."""
    case = row.case
    if case.columns or case.backward or case.last:
        return None
    inputs = {
        "X": arrays["input"],
        "W": arrays["weight"],
        "offset": arrays["offset"],
        **({"bias": None, "mask": arrays["mask"]} if case.mask else {}),
    }
    options = {"group": case.groups, "offset_group": case.offset_groups, "pads": [case.padding] * 4}
    call = onnxruntime_call("DeformConv", inputs, 4, threads, **options)
    return call and Prepared(call, to_numpy)
