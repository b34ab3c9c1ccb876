"""PyTorch's compiler: settings that are symbols, and sizes that depend on data."""

from collections.abc import Iterator
from typing import Any

import pytest

import cudakit

from .conftest import require

torch: Any = None


@pytest.fixture(autouse=True)
def _torch(torch_device: str) -> Iterator[None]:
    global torch
    torch = require("torch")
    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


def whole(function: Any, **options: Any) -> Any:
    """Compile a function as one graph."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def test_one_number_for_all_dimensions_may_be_a_symbol() -> None:
    def convolve(x: Any, offset: Any, weight: Any, padding: int, stride: int, dilation: int) -> Any:
        return cudakit.deform_conv2d(x, offset, weight, None, stride, padding, dilation)

    x, weight = torch.rand(2, 4, 9, 9), torch.rand(6, 4, 3, 3)
    for compiled in (whole(convolve), whole(convolve, dynamic=True)):
        for padding, stride, dilation, size in ((1, 1, 1, 9), (2, 1, 2, 9), (3, 2, 1, 7)):
            given = x, torch.rand(2, 18, size, size), weight, padding, stride, dilation
            torch.testing.assert_close(compiled(*given), convolve(*given), rtol=0, atol=0)


def test_settings_may_come_from_shapes() -> None:
    def convolve(x: Any, offset: Any, weight: Any) -> Any:
        return cudakit.deform_conv2d(x, offset, weight, padding=weight.shape[-1] // 2)

    compiled, x = whole(convolve), torch.rand(2, 4, 9, 9)
    for kernel in (3, 5, 1):
        given = x, torch.rand(2, 2 * kernel**2, 9, 9), torch.rand(6, 4, kernel, kernel)
        torch.testing.assert_close(compiled(*given), convolve(*given), rtol=0, atol=0)


def test_a_batch_may_depend_on_data() -> None:
    x, grid, offset = torch.rand(4, 2, 5, 5), torch.rand(4, 3, 3, 2), torch.rand(4, 18, 5, 5)
    weight, some = torch.rand(3, 2, 3, 3), torch.tensor([True, False, True, True])
    for call in (
        lambda x: cudakit.grid_sample(x[some], grid[some]),
        lambda x: cudakit.deform_conv2d(x[some], offset[some], weight, padding=1),
    ):
        found, expected = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = whole(call)(found), call(expected)
        torch.testing.assert_close(y, wanted)
        (y**2).sum().backward()
        (wanted**2).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad)
