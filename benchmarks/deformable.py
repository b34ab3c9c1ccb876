"""The family of deformable convolutions: `deform_conv2d` with its gradients, and `deform_im2col`."""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

import cudakit

from . import deformable_peers as peers
from .cases import OURS, Array, Arrays, Family, Prepared, Row, Side, Tiny, in_layout, to_numpy

FLIPS = {1: 2e-3}  # share of gradients by offsets of samples so near to a knot that rounding picks their side


class Deform(NamedTuple):
    """A row of `deform_conv2d` with stride 1 and a padding that keeps the size.

    With `mask` it is version 2; `spread` is the standard deviation of the offsets in pixels; `last`: channels last;
    `columns`: `deform_im2col` alone.
    """

    shape: tuple[int, ...]
    outputs: int
    offset_groups: int = 1
    groups: int = 1
    kernel: int = 3
    spread: float = 2.0
    mask: bool = True
    backward: bool = False
    last: bool = False
    columns: bool = False

    @property
    def taps(self) -> int:
        """Return how many samples of each channel an output pixel has."""
        return self.kernel**2

    @property
    def flop(self) -> int:
        """Return the operations of the matrix products, two of them backward, or of the interpolation of columns."""
        batch, channels, *space = self.shape
        columns = batch * channels * self.taps * prod(space)
        if self.columns:
            return 2 * 4 * columns
        return 2 * columns * self.outputs // self.groups * (2 if self.backward else 1)

    @property
    def padding(self) -> int:
        """Return the padding of each side."""
        return self.kernel // 2


def _square(batch: int, channels: int, side: int) -> Deform:
    return Deform((batch, channels, side, side), channels)


SIZES = {
    "c64_56": _square(1, 64, 56),
    "c256_28": _square(1, 256, 28),
    "n4c128_64": _square(4, 128, 64),
    "c128_56_og4": _square(1, 128, 56)._replace(offset_groups=4),
    "c128_56_g4og4": _square(1, 128, 56)._replace(offset_groups=4, groups=4),
}
MASKED_SIZES = {  # measured with a mask only: few pixels, few channels for each offset, and for each weight
    "c256_14": _square(1, 256, 14),  # the last stages of a ResNet
    "c512_7": _square(1, 512, 7),
    "c64_56_og8": _square(1, 64, 56)._replace(offset_groups=8),  # as video restoration aligns frames (EDVR)
    "c256_28_g32": _square(1, 256, 28)._replace(groups=32),  # as in a ResNeXt
    "c256_28_g256": _square(1, 256, 28)._replace(groups=256),  # depthwise
}
SMALL_SIZES = {
    "n2c16_8": _square(2, 16, 8)._replace(outputs=24),
    "c32_6_g4og4": _square(1, 32, 6)._replace(offset_groups=4, groups=4),
}
GPU_SIZES = {
    **{f"n16c{64 << i}_{56 >> i}": _square(16, 64 << i, 56 >> i) for i in range(4)},  # the stages of a ResNet
    **{f"n2c256_{200 >> i}x{320 >> i}": Deform((2, 256, 200 >> i, 320 >> i), 256) for i in range(4)},  # a pyramid
    "n16c256_64": _square(16, 256, 64),
    "n16c128_56_g4og4": _square(16, 128, 56)._replace(offset_groups=4, groups=4),
    "n16c256_28_g32": _square(16, 256, 28)._replace(groups=32),
    "n16c256_28_g256": _square(16, 256, 28)._replace(groups=256),
    "c8_4": _square(1, 8, 4),  # next to nothing: what a call takes
}
TWINS = ("c64_56", "n4c128_64", "n16c256_64", "n2c16_8")  # have rows with channels last, and rows of columns


def arrays(case: Deform) -> Arrays:
    """Return what a row reads, in the layout that cudakit is given."""
    rng = np.random.default_rng(prod(case.shape))
    batch, channels, *space = case.shape
    samples = case.offset_groups * case.taps

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    found = {
        "input": in_layout(normal(*case.shape), case.last),
        "offset": in_layout(case.spread * normal(batch, 2 * samples, *space), case.last),
    }
    if case.mask:
        found["mask"] = in_layout(rng.random((batch, samples, *space), np.float32), case.last)
    if not case.columns:
        found["weight"] = normal(case.outputs, channels // case.groups, case.kernel, case.kernel)
    if case.backward:
        found["grad_output"] = in_layout(normal(batch, case.outputs, *space), case.last)
    return found


def row(size: str, case: Deform) -> Row:
    """Return a row of a table."""
    version = f"v{1 + case.mask}"
    if case.columns:
        name, section = f"im2col_{size}_{version}", "deform_im2col"
    else:
        name = f"dc_{size}_{version}_{'bwd' if case.backward else 'fwd'}"
        section = f"deform_conv2d, {'backward (all gradients)' if case.backward else 'forward'}"
    if case.last:
        name, section = f"{name}_last", f"{section}, channels last"
    return Row(name, section, case, lambda: arrays(case), flips=FLIPS if case.backward else {})


def _variants(sizes: dict[str, Deform], masks: tuple[bool, ...]) -> Iterator[tuple[str, Deform]]:
    """Yield every size forward and backward, then the twins with channels last, then the columns alone."""
    twins = {size: sizes[size] for size in TWINS if size in sizes}
    for backward, (size, case), mask in product((False, True), sizes.items(), masks):
        yield size, case._replace(mask=mask, backward=backward)
    for backward, (size, case) in product((False, True), twins.items()):
        yield size, case._replace(backward=backward, last=True)
    for last, (size, case) in product((False, True), twins.items()):
        yield size, case._replace(last=last, columns=True)


def rows(small: bool) -> list[Row]:
    """Return the family's rows on a CPU."""
    if small:
        return [row(*variant) for variant in _variants(SMALL_SIZES, (False, True))]
    return [row(*variant) for variant in (*_variants(SIZES, (False, True)), *_variants(MASKED_SIZES, (True,)))]


def gpu_rows(small: bool) -> list[Row]:
    """Return the family's rows on a GPU."""
    return [row(*variant) for variant in _variants(SMALL_SIZES if small else GPU_SIZES, (True,))]


def _ours(row: Row, arrays: Arrays, _: int) -> Prepared:
    case = row.case
    x, offset, weight = arrays["input"], arrays["offset"], arrays.get("weight")
    options: dict[str, Any] = {
        "padding": case.padding,
        "mask": arrays.get("mask"),
        "data_format": "channels_last" if case.last else "channels_first",
    }
    if case.columns:
        return Prepared(lambda: cudakit.deform_im2col(x, offset, case.kernel, **options), to_numpy)
    if not case.backward:
        return Prepared(lambda: cudakit.deform_conv2d(x, offset, weight, **options), to_numpy)
    grad = arrays["grad_output"]
    return Prepared(lambda: cudakit.deform_conv2d_backward(grad, x, offset, weight, **options), to_numpy)


FLOORS: dict[str, Side] = {
    "dense_conv": peers.dense_conv,
    "gemm_only": peers.gemm_only,
    "copy_only": peers.copy_only,
}
RIVALS: dict[str, Side] = {"torchvision": peers.torchvision, "torch_composite": peers.torch_composite}
RUNTIMES: dict[str, Side] = {"openvino": peers.openvino, "onnxruntime": peers.onnxruntime}
NOTES = (
    "Stride 1, a kernel of 3×3, padding 1, no bias; offsets are normal with a standard deviation of 2 pixels. "
    "c64_56: 64 channels in and out, 56×56 pixels; n4: four images; v2 has a mask, v1 none; og and g are offset groups "
    "and convolution groups where there is more than one.",
    "Torch by hand is `grid_sample`, a product with the mask and a matrix product, as one writes it in PyTorch. Its "
    "gradients are those of `torch.autograd.grad` on a graph that has been made before.",
    "Dense convolution is `conv2d` of the same shape, which samples nothing; matrix product is what remains when the "
    "columns are ready; copy is that of the columns, to new memory. They are floors: another function, not a rival.",
    "All gradients: input, offset, weight, and mask where there is one. torchvision's, timed without autograd around "
    "them, hold that of a bias too, which it always computes.",
    "Operations are those of the matrix products, as for an ordinary convolution, two products backward; for columns "
    "alone, those of the interpolation.",
    "In the channels-last tables torch is given tensors with channels-last strides.",
)
TINY = Tiny(
    "deform_conv2d (1, 1, 4, 4) to (1, 1, 4, 4)",
    "x, offset = np.ones((1, 1, 4, 4), np.float32), np.zeros((1, 18, 4, 4), np.float32)\n"
    "weight = np.ones((1, 1, 3, 3), np.float32)",
    "cudakit.deform_conv2d(x, offset, weight, padding=1)",
    row("tiny", _square(1, 1, 4)._replace(mask=False)),
)
FAMILY = Family(
    "deformable",
    "Deformable convolution",
    rows,
    gpu_rows,
    {OURS: _ours} | RUNTIMES | RIVALS | FLOORS,
    on_tensors=(*RIVALS, *FLOORS),
    rivals=(*RUNTIMES, *RIVALS),
    tiny=TINY,
    floors=tuple(FLOORS),
    memory=("dc_n4c128_64_v2_fwd", "dc_n4c128_64_v2_bwd"),
    notes=NOTES,
)
