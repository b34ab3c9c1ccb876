"""The GPU's plan of a convolution, run without one: its kernels on the host, and its products in NumPy."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import cudakit
from cudakit import conv_cuda_plan, conv_ops, op
from cudakit.conv_plan import Slots
from cudakit.plan import Plan, Slot
from cudakit.product import Multiply, Operand, column_major

# (batch, channels, outputs, groups of offsets, groups of the convolution, kernel, bytes of a block of columns)
CASES = [
    (3, 8, 6, 2, 1, 3, 1 << 20),
    (3, 8, 6, 2, 1, 3, 1),  # some pixels at a time
    (5, 12, 9, 1, 3, 3, 1 << 20),
    (5, 12, 9, 4, 3, 3, 20_000),  # two images at a time
    (2, 6, 4, 3, 2, 1, 1),
    (1, 1, 1, 1, 1, 2, 1),
]
SPACE = (13, 11)


def matrix(pointer: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """View memory as (batch, rows, columns)."""
    size = np.dtype(dtype).itemsize
    length = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    address = {"data": (pointer, False), "shape": (length,), "typestr": np.dtype(dtype).str, "version": 3}
    memory = np.asarray(type("Memory", (), {"__array_interface__": address})())
    return as_strided(memory, shape, [step * size for step in strides])


def operand(pointer: int, dtype: str, batch: int, sizes: tuple[int, int], found: Operand) -> np.ndarray[Any, Any]:
    """View an operand as cuBLAS does: columns in memory, `leading` apart, perhaps of the transposed matrix."""
    rows, columns = sizes[::-1] if found.transposed else sizes
    assert found.leading >= max(1, rows)
    view = matrix(pointer, dtype, (batch, rows, columns), (found.batch, 1, found.leading))
    return view.swapaxes(1, 2) if found.transposed else view


def multiply(self: Multiply, pointers: bytes, _: int) -> None:
    """Do what cuBLAS is asked to do."""
    product = self.product
    first, second, out = column_major(product)
    (m, n, k), (x, y, z) = product.sizes, struct.unpack("3Q", pointers)
    if out.swapped:
        m, n, x, y = n, m, y, x
    a = operand(x, product.dtype, product.batch, (m, k), first)
    b = operand(y, product.dtype, product.batch, (k, n), second)
    c = operand(z, product.out, product.batch, (m, n), out)
    c[...] = a @ b + (c if product.add else 0)


@pytest.fixture
def gpu_plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plan convolutions on the CPU as for a GPU."""
    monkeypatch.setattr(Multiply, "__call__", multiply)

    def forward(plan: Plan, target: Any, conv: Any, slots: Slots, output: Slot) -> None:
        conv_cuda_plan.plan_forward(plan, target, conv, slots, output, False)

    def backward(plan: Plan, target: Any, conv: Any, slots: Slots, grad: Slot, results: Slots) -> None:
        conv_cuda_plan.plan_backward(plan, target, conv, slots, grad, results, False)

    monkeypatch.setattr(conv_ops.conv_plan, "plan_forward", forward)
    monkeypatch.setattr(conv_ops.conv_backward_plan, "plan_backward", backward)
    forget()
    yield
    forget()


def forget() -> None:
    """Make every operator plan anew."""
    op._recipes.clear()
    op._plan.cache_clear()


def problem(case: tuple[int, ...], last: bool) -> tuple[list[Any], dict[str, Any]]:
    """Return (grad_output, input, offset, weight, bias, mask) and the options."""
    batch, channels, outputs, groups, conv_groups, kernel, _ = case
    rng = np.random.default_rng(case)
    taps, out = kernel**2, tuple(size + 2 - kernel + 1 for size in SPACE)
    shapes = [
        (batch, outputs, *out),
        (batch, channels, *SPACE),
        (batch, groups * taps * 2, *out),
        (outputs, channels // conv_groups, kernel, kernel),
        (outputs,),
        (batch, groups * taps, *out),
    ]
    arrays = [rng.normal(size=shape) for shape in shapes]
    if last:
        arrays = [
            array if i in (3, 4) else np.ascontiguousarray(np.moveaxis(array, 1, -1)) for i, array in enumerate(arrays)
        ]
    return arrays, {"padding": 1, "data_format": "channels_last" if last else "channels_first"}


def results(case: tuple[int, ...], last: bool, bias: bool, needs: tuple[str, ...]) -> list[Any]:
    """Return the output and the gradients."""
    (grad, *arrays), options = problem(case, last)
    input, offset, weight, shift, mask = arrays
    given = (input, offset, weight, shift if bias else None)
    output = cudakit.deform_conv2d(*given, mask=mask, **options)
    return [output, *cudakit.deform_conv2d_backward(grad, *given, mask=mask, needs=needs, **options)]


@pytest.mark.parametrize("needs", [conv_ops.NAMES, ("input",), ("weight",), ("offset", "weight")], ids="+".join)
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gpus_plan_computes_what_the_cpus_does(
    case: tuple[int, ...],
    last: bool,
    needs: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    bias = needs == conv_ops.NAMES
    expected = results(case, last, bias, needs)
    monkeypatch.setattr(conv_cuda_plan, "COLUMN_BYTES", case[-1])
    request.getfixturevalue("gpu_plan")
    for found, wanted in zip(results(case, last, bias, needs), expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
