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


def squares(arrays: Any) -> Any:
    return sum((x**2).sum() for x in arrays)


def test_gradients_of_gradients() -> None:
    """Differences of penalties tell the same, in float64."""
    given = [paddle.to_tensor(x.astype(np.float64), stop_gradient=False) for x in arrays()]

    def penalty(*tensors: Any) -> Any:
        return squares(paddle.grad(convolve(*tensors).square().sum(), list(tensors), create_graph=True))

    found = paddle.grad(penalty(*given), given)
    rng = np.random.default_rng(3)
    for i, gradient in enumerate(found):
        along = paddle.to_tensor(rng.standard_normal(gradient.shape) * 1e-6)
        moved = ([x.detach() + sign * along if i == j else x.detach() for j, x in enumerate(given)] for sign in (1, -1))
        ends = [float(penalty(*map(asking, tensors))) for tensors in moved]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2, float((gradient * along).sum()), rtol=1e-5)


def asking(x: Any) -> Any:
    x.stop_gradient = False
    return x


def test_third_derivatives_are_refused() -> None:
    image, grid = (paddle.to_tensor(x, stop_gradient=False) for x in (arrays()[0], np.zeros((2, 3, 3, 2), np.float32)))
    found = cudakit.grid_sample_backward(cudakit.grid_sample(image, grid), image, grid, needs=("grid",))
    assert found.input is None
    curvatures = paddle.grad(squares([found.grid]), [image, grid], create_graph=True)
    with pytest.raises(OSError, match="grid_sample_double_backward: there are no third derivatives"):  # Paddle's kind
        squares(curvatures).backward()


def test_what_changed_in_place_is_refused() -> None:
    image, grid = (paddle.to_tensor(x, stop_gradient=False) for x in (arrays()[0], np.zeros((2, 3, 3, 2), np.float32)))
    copy = image * 1
    loss = cudakit.grid_sample(copy, grid).sum()
    copy.zero_()
    with pytest.raises(OSError, match="grid_sample: input was changed in place"):
        loss.backward()


def test_traced_with_breaks() -> None:
    image, grid = (paddle.to_tensor(x, stop_gradient=False) for x in (arrays()[0], np.zeros((2, 3, 3, 2), np.float32)))
    found = paddle.jit.to_static(lambda image, grid: 2 * cudakit.grid_sample(image, grid))(image, grid)
    np.testing.assert_array_equal(found.numpy(), 2 * cudakit.grid_sample(image, grid).numpy())
    found.sum().backward()
    assert float(image.grad.abs().sum()) > 0


def test_static_graphs_are_refused() -> None:
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program()):
            image, grid = paddle.static.data("image", [1, 1, 4, 4]), paddle.static.data("grid", [1, 2, 2, 2])
            with pytest.raises(TypeError, match="Paddle's static graphs are not served"):
                cudakit.grid_sample(image, grid)
    finally:
        paddle.disable_static()


def test_layers_train() -> None:
    layer = paddle.nn.Linear(4, 6)
    image = paddle.to_tensor(arrays()[0])
    theta = layer(image.mean((2, 3))).reshape((2, 2, 3))
    cudakit.grid_sample(image, cudakit.affine_grid(theta, image.shape)).square().sum().backward()
    assert float(layer.weight.grad.abs().sum()) > 0
