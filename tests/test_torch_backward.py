"""Operators where PyTorch goes backwards: gradients of several results at once, and other functions' backward."""

from typing import Any

import pytest

import cudakit

from .conftest import require

torch: Any = None


@pytest.fixture(autouse=True)
def _torch() -> None:
    global torch
    torch = require("torch")
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # by PyTorch's exporter itself
@pytest.mark.parametrize("way", ["exported", "traced", "compiled"])
def test_gradients_of_several_at_once_of_a_graph(way: str) -> None:
    class Warp(torch.nn.Module):
        def forward(self, x: Any, grid: Any) -> Any:
            return cudakit.grid_sample(x, grid)

    x, grid = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 3, 2) * 2 - 1
    expected = torch.autograd.functional.jacobian(cudakit.grid_sample, (x, grid))
    if way == "exported":
        warp = torch.export.export(Warp(), (x, grid)).module()
    elif way == "traced":
        warp = torch.jit.trace(Warp(), (x, grid))
    else:
        warp = torch.compile(Warp(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.functional.jacobian(warp, (x, grid), vectorize=True), expected)


def test_calls_where_gradients_of_several_pass() -> None:
    grid, x = torch.rand(1, 4, 4, 2) * 2 - 1, torch.rand(1, 2, 4, 4, requires_grad=True)
    doubled = 2 * x
    doubled.register_hook(lambda grad: cudakit.grid_sample(grad, grid))
    several = torch.rand(3, 1, 2, 4, 4)
    (found,) = torch.autograd.grad(doubled, x, several, is_grads_batched=True)
    torch.testing.assert_close(found, torch.stack([2 * cudakit.grid_sample(grad, grid) for grad in several]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch's compiler itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_an_operator_in_somebody_s_backward_is_compiled(gradients: bool) -> None:
    class Warp(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, grid: Any) -> Any:
            ctx.save_for_backward(x, grid)
            return cudakit.grid_sample(x, grid)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, grid = ctx.saved_tensors
            if gradients:
                return cudakit.grid_sample_backward(grad, x, grid)
            return cudakit.grid_sample(x, grid).sum() * grad.sum() * x, None

    x, grid = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 3, 3, 2) * 2 - 1
    (expected,) = torch.autograd.grad(Warp.apply(x, grid).sum(), x)
    compiled = torch.compile(lambda x: Warp.apply(x, grid).sum(), fullgraph=not gradients, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(found, expected)
