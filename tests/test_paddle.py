"""Paddle: its autograd, and only the gradients that are needed."""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import require

paddle: Any = None


@pytest.fixture(autouse=True)
def _paddle() -> None:
    global paddle
    paddle = require("paddle")


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = ((2, 4, 6, 5), (2, 18, 4, 3), (6, 2, 3, 3), (6,), (2, 9, 4, 3))
    return [rng.uniform(size=shape).astype(np.float32) for shape in shapes]


def convolve(image: Any, offset: Any, weight: Any, bias: Any = None, mask: Any = None) -> Any:
    return cudakit.deform_conv2d(image, offset, weight, bias, mask=mask)


@pytest.mark.parametrize("count", [3, 5])  # of the arrays: without bias and mask, and with both
def test_gradients_equal_the_numpy_road(count: int) -> None:
    given = arrays()[:count]
    tensors = [paddle.to_tensor(x, stop_gradient=False) for x in given]
    (convolve(*tensors) ** 2).sum().backward()
    bias, mask = given[3:] or (None, None)
    expected = cudakit.deform_conv2d_backward(2 * convolve(*given), *given[:3], bias, mask=mask)
    for tensor, slope in zip(tensors, [x for x in expected if x is not None], strict=True):
        np.testing.assert_array_equal(tensor.grad.numpy(), slope)


def test_only_the_needed_gradient() -> None:
    tensors = [paddle.to_tensor(x) for x in arrays()]
    tensors[2].stop_gradient = False
    convolve(*tensors).sum().backward()
    assert [x.grad is None for x in tensors] == [True, True, False, True, True]


def test_without_gradients_nothing_is_recorded() -> None:
    tensors = [paddle.to_tensor(x, stop_gradient=False) for x in arrays()]
    with paddle.no_grad():
        assert convolve(*tensors).stop_gradient
    assert convolve(*(x.detach() for x in tensors)).stop_gradient


def test_layers_train() -> None:
    layer = paddle.nn.Linear(4, 6)
    image = paddle.to_tensor(arrays()[0])
    theta = layer(image.mean((2, 3))).reshape((2, 2, 3))
    cudakit.grid_sample(image, cudakit.affine_grid(theta, image.shape)).square().sum().backward()
    assert float(layer.weight.grad.abs().sum()) > 0
