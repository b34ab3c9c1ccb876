"""The NumPy oracle against PyTorch, ONNX's reference evaluator and finite differences."""

from typing import Any

import numpy as np
import pytest

from cudakit import reference

from .conftest import COMBINATIONS, MODES, OUT, PADDING_MODES, draw, require
from .tolerances import Floats


def torch_grid_sample(x: Any, grid: Any, mode: str, padding_mode: str, align_corners: bool) -> Any:
    """PyTorch's function, extended to 1-D (an image of height 1) and to 3-D cubic (slices, then along the depth)."""
    torch = require("torch")

    def sample(image: Any, points: Any) -> Any:
        return torch.nn.functional.grid_sample(image, points, mode, padding_mode, align_corners)

    n = grid.shape[-1]
    if n == 1:
        points = torch.stack([grid[..., 0], torch.zeros_like(grid[..., 0])], -1)
        return sample(x[:, :, None], points[:, None])[:, :, 0]
    if n == 3 and mode == "bicubic":
        (batch, channels, depth, *_), out = x.shape, grid.shape[1:-1]
        points = grid.reshape(batch, 1, -1, 3)
        slices = [sample(x[:, :, z], points[..., :2])[:, :, 0] for z in range(depth)]
        columns = torch.stack(slices, -1).permute(0, 2, 1, 3).reshape(-1, channels, depth, 1)
        heights = torch.stack([torch.zeros_like(points[..., 2]), points[..., 2]], -1)
        values = sample(columns, heights.reshape(-1, 1, 1, 2)).reshape(batch, -1, channels)
        return values.transpose(1, 2).reshape(batch, channels, *out)
    return sample(x, grid)


def onnx_grid_sample(x: Floats, grid: Floats, mode: str, padding_mode: str, align_corners: bool) -> Floats:
    """Sample by ONNX's own evaluator, which works out coordinates in float32."""
    require("onnx")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
    attributes = {"mode": names[mode], "padding_mode": padding_mode, "align_corners": int(align_corners)}
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ("x", "grid", "y")]
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)
    graph = helper.make_graph([node], "grid_sample", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    return ReferenceEvaluator(model).run(None, {"x": x, "grid": grid})[0]


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("sizes", [(5,), (1,), (2,), (5, 4), (1, 2), (7, 1), (3, 5, 4), (1, 2, 3)])
def test_values_and_gradients_are_torchs(
    rng: np.random.Generator, sizes: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> None:
    torch = require("torch")
    problem = draw(rng, sizes, OUT[len(sizes)], dtype="float64", align_corners=align_corners)
    x, grid, grad_output = (torch.tensor(array, requires_grad=True) for array in problem)
    y = torch_grid_sample(x, grid, mode, padding_mode, align_corners)
    grad_input, grad_grid = torch.autograd.grad(y, (x, grid), grad_output, materialize_grads=True)

    values = reference.grid_sample(*problem[:2], mode, padding_mode, align_corners)
    gradients = reference.grid_sample_backward(problem.grad_output, *problem[:2], mode, padding_mode, align_corners)

    for actual, expected in zip((values, *gradients), (y, grad_input, grad_grid), strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), COMBINATIONS)
@pytest.mark.parametrize("sizes", [(5,), (4, 5), (3, 5, 4)])
def test_values_are_onnxs(
    rng: np.random.Generator, sizes: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> None:
    x, grid, _ = draw(rng, sizes, OUT[len(sizes)], align_corners=align_corners)
    if mode == "bicubic" and padding_mode == "border":
        # The evaluator clips the centre of the footprint, where torch and onnxruntime clip each tap. So give it an
        # image that is already extended by its edge pixels, and the same points in that image's coordinates.
        by = 8
        stretch = [(size + 2 * by - align_corners) / max(size - align_corners, 1) for size in reversed(sizes)]
        x_extended = np.pad(x, [(0, 0), (0, 0), *[(by, by)] * len(sizes)], mode="edge")
        expected = onnx_grid_sample(x_extended, grid / stretch, mode, "zeros", align_corners)
    else:
        expected = onnx_grid_sample(x, grid, mode, padding_mode, align_corners)
    actual = reference.grid_sample(x, grid, mode, padding_mode, align_corners)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6,), (5, 4), (3, 5, 4)])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_gradients_are_finite_differences(
    rng: np.random.Generator, sizes: tuple[int, ...], mode: str, padding_mode: str
) -> None:
    x, grid, grad_output = draw(rng, sizes, OUT[len(sizes)], batch=1, dtype="float64")
    step = 1e-6  # moves a coordinate by far less than the band around the knots

    def loss(x: Floats, grid: Floats) -> float:
        return float(np.sum(reference.grid_sample(x, grid, mode, padding_mode) * grad_output))

    grad_input, grad_grid = reference.grid_sample_backward(grad_output, x, grid, mode, padding_mode)
    for direction in rng.normal(size=(3, *grid.shape)):
        slope = (loss(x, grid + step * direction) - loss(x, grid - step * direction)) / (2 * step)
        assert slope == pytest.approx(np.sum(grad_grid * direction), rel=1e-6, abs=1e-6)
    direction = rng.normal(size=x.shape)  # exact for any step: the values are linear in the input
    assert loss(direction, grid) == pytest.approx(np.sum(grad_input * direction), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [(3, 4), (1, 5), (1, 1), (2, 3, 4), (3, 1, 1)])
def test_affine_grid_is_torchs(rng: np.random.Generator, sizes: tuple[int, ...], align_corners: bool) -> None:
    torch = require("torch")
    n, size = len(sizes), (2, 3, *sizes)
    theta = torch.tensor(rng.normal(size=(2, n, n + 1)), requires_grad=True)
    grad_grid = rng.normal(size=(2, *sizes, n))
    grid = torch.nn.functional.affine_grid(theta, size, align_corners)
    (grad_theta,) = torch.autograd.grad(grid, theta, torch.tensor(grad_grid))

    actual = reference.affine_grid(theta.detach().numpy(), size, align_corners)
    np.testing.assert_allclose(actual, grid.detach().numpy(), rtol=1e-12, atol=1e-12)
    actual = reference.affine_grid_backward(grad_grid, size, align_corners)
    np.testing.assert_allclose(actual, grad_theta.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_coordinate_gives_zeros(mode: str, padding_mode: str) -> None:
    x, grid = np.full((1, 1, 3, 3), np.nan), np.array([[[[np.nan, 0.0], [0.0, np.nan]]]])
    grad_output = np.ones((1, 1, 1, 2))
    values = reference.grid_sample(x, grid, mode, padding_mode)
    gradients = reference.grid_sample_backward(grad_output, x, grid, mode, padding_mode)
    assert not any(np.any(array) for array in (values, *gradients))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("mode", MODES)
def test_infinite_coordinates_are_the_edge_pixels(mode: str, padding_mode: str, align_corners: bool) -> None:
    x = np.arange(1.0, 6.0).reshape(1, 1, 5)
    grid = np.array([-np.inf, -1e300, 1e10, np.inf]).reshape(1, 4, 1)
    values = reference.grid_sample(x, grid, mode, padding_mode, align_corners)
    grad_output = np.array([[[1.0, 10.0, 100.0, 1000.0]]])
    gradients = reference.grid_sample_backward(grad_output, x, grid, mode, padding_mode, align_corners)
    assert values.tolist() == [[[1, 1, 5, 5]]]
    assert gradients[0].tolist() == [[[11, 0, 0, 0, 1100]]]
    assert not gradients[1].any()


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="cubic"):
        reference.grid_sample(np.ones((1, 1, 2)), np.zeros((1, 1, 1)), "cubic")
