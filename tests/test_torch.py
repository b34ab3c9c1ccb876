"""PyTorch: autograd, only the gradients that are needed, memory formats."""

from typing import Any

import pytest

import cudakit

from .conftest import MODES, PADDING_MODES, require

torch = None


@pytest.fixture(autouse=True)
def _torch() -> None:
    global torch
    torch = require("torch")


def arrays(n: int, dtype: str = "float64") -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(n)
    kind = getattr(torch, dtype)
    image = torch.randn((2, 2, 5, 4, 3)[: 2 + n], generator=generator, dtype=torch.float64)
    grid = torch.rand((*(2, 3, 2, 2)[: 1 + n], n), generator=generator, dtype=torch.float64) * 2.4 - 1.2
    return image.to(kind).requires_grad_(), grid.to(kind).requires_grad_()


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_grid_sample_gradients(n: int, mode: str, padding_mode: str) -> None:
    image, grid = arrays(n)
    inputs = (image, grid if mode != "nearest" else grid.detach())
    assert torch.autograd.gradcheck(lambda x, g: cudakit.grid_sample(x, g, mode, padding_mode), inputs)


@pytest.mark.parametrize("size", [(2, 1, 4, 3), (2, 1, 3, 2, 4)])
def test_affine_grid_gradients(size: tuple[int, ...]) -> None:
    n = len(size) - 2
    theta = torch.randn(2, n, n + 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: cudakit.affine_grid(t, size, align_corners=True), (theta,))


def test_only_the_needed_gradient() -> None:
    image, grid = arrays(2)
    cudakit.grid_sample(image.detach(), grid).sum().backward()
    assert image.grad is None
    assert grid.grad is not None


def test_without_autograd_nothing_is_recorded() -> None:
    image, grid = arrays(2)
    with torch.no_grad():
        assert not cudakit.grid_sample(image, grid).requires_grad


def test_second_derivatives_are_refused() -> None:
    image, grid = arrays(2)
    (slope,) = torch.autograd.grad(cudakit.grid_sample(image, grid).square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_half_precision_keeps_coordinates_in_float32() -> None:
    image, _ = arrays(2, "bfloat16")
    _, grid = arrays(2, "float32")
    cudakit.grid_sample(image, grid).float().sum().backward()
    assert (image.grad.dtype, grid.grad.dtype) == (torch.bfloat16, torch.float32)


def test_channels_last_memory_format() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 8, 5, 6, generator=generator)
    grid = torch.rand(2, 4, 3, 2, generator=generator)
    turned = image.to(memory_format=torch.channels_last)
    torch.testing.assert_close(cudakit.grid_sample(turned, grid), cudakit.grid_sample(image, grid))


def test_sparse_tensor_is_refused() -> None:
    image, grid = arrays(2)
    with pytest.raises(TypeError, match="grid_sample: input must"):
        cudakit.grid_sample(image.detach().to_sparse(), grid.detach())
