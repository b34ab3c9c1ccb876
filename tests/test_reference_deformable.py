"""The deformable half of the oracle against torchvision, PyTorch, ONNX's reference evaluator and finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cudakit import reference

from .conftest import require
from .deformable_problems import GEOMETRIES, Geometry, Problem, call, draw

ANY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
SYMMETRIC = {name: geometry for name, geometry in GEOMETRIES.items() if "asymmetric" not in name}
SYMMETRIC_2D = {name: geometry for name, geometry in SYMMETRIC.items() if geometry.n == 2}


def assert_same(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def gradients_by_torch(function: Callable[..., Any], problem: Problem) -> dict[str, Any]:
    """Return the values of a torch function of (input, offset, weight, bias, mask), and its gradients."""
    torch = require("torch")
    arrays = {name: getattr(problem, name) for name in ("input", "offset", "weight", "bias", "mask")}
    tensors = {
        name: None if array is None else torch.tensor(array, requires_grad=True) for name, array in arrays.items()
    }
    output = function(**tensors)
    wanted = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    gradients = torch.autograd.grad(output, list(wanted.values()), torch.tensor(problem.output), allow_unused=True)
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


@pytest.mark.parametrize("geometry", SYMMETRIC_2D.values(), ids=SYMMETRIC_2D)
def test_values_and_gradients_are_torchvisions(rng: np.random.Generator, geometry: Geometry) -> None:
    torchvision = require("torchvision")
    problem = draw(rng, geometry, "float64")

    def convolve(input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> Any:
        return torchvision.ops.deform_conv2d(input, offset, weight, bias, *geometry.places, mask)

    expected = gradients_by_torch(convolve, problem)
    assert_same(call("deform_conv", problem, reference)["output"], expected["output"])
    gradients = call("deform_conv_backward", problem, reference)
    for name, gradient in gradients.items():
        assert (gradient is None) == (name not in expected)
        if gradient is not None:
            assert_same(gradient, expected[name])


@pytest.mark.parametrize("geometry", SYMMETRIC.values(), ids=SYMMETRIC)
def test_zero_offsets_are_torchs_convolution(rng: np.random.Generator, geometry: Geometry) -> None:
    torch = require("torch")
    drawn = draw(rng, geometry._replace(masked=False), "float64")
    problem = drawn._replace(offset=np.zeros_like(drawn.offset))
    conv = getattr(torch.nn.functional, f"conv{geometry.n}d")

    def convolve(input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> Any:
        return conv(input, weight, bias, *geometry.places, geometry.groups)

    expected = gradients_by_torch(convolve, problem)
    assert_same(call("deform_conv", problem, reference)["output"], expected["output"])
    gradients = call("deform_conv_backward", problem, reference)
    assert_same(gradients["input"], expected["input"])
    assert_same(gradients["weight"], expected["weight"])
    if gradients["bias"] is not None:
        assert_same(gradients["bias"], expected["bias"])


@pytest.mark.parametrize("geometry", SYMMETRIC_2D.values(), ids=SYMMETRIC_2D)
def test_zero_offsets_are_torchs_unfold_and_fold(rng: np.random.Generator, geometry: Geometry) -> None:
    torch = require("torch")
    problem = draw(rng, geometry, "float64")
    offset, (stride, padding, dilation) = np.zeros_like(problem.offset), geometry.places
    arguments = (geometry.kernel, dilation, padding, stride)

    unfolded = torch.nn.functional.unfold(torch.tensor(problem.input), *arguments).numpy()
    columns = reference.deform_im2col(problem.input, offset, geometry.kernel, *geometry.places)
    assert (columns == unfolded).all()
    folded = torch.nn.functional.fold(torch.tensor(problem.columns), geometry.sizes, *arguments)
    image = reference.deform_col2im(problem.columns, offset, geometry.sizes, geometry.kernel, *geometry.places)
    assert_same(image, folded)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name.startswith("2-D")])
def test_values_are_onnxs(rng: np.random.Generator, name: str) -> None:
    require("onnx")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    problem = draw(rng, GEOMETRIES[name], "float64")
    g = problem.geometry
    stride, dilation = (np.broadcast_to(value, g.n).tolist() for value in (g.stride, g.dilation))
    pads = np.resize(np.broadcast_to(g.padding, 2 * g.n) if isinstance(g.padding, int) else g.padding, 2 * g.n)
    arrays = {"x": problem.input, "w": problem.weight, "offset": problem.offset, "b": problem.bias, "m": problem.mask}
    given = {key: array for key, array in arrays.items() if array is not None}
    node = helper.make_node(
        "DeformConv",
        [key if key in given else "" for key in arrays],
        ["y"],
        strides=stride,
        pads=pads.tolist(),
        dilations=dilation,
        group=g.groups,
        offset_group=g.offset_groups,
        kernel_shape=g.kernel,
    )
    values = [helper.make_tensor_value_info(key, TensorProto.DOUBLE, None) for key in (*given, "y")]
    graph = helper.make_graph([node], "deform_conv", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    (expected,) = ReferenceEvaluator(model).run(None, given)  # which works out coordinates in float32
    actual = call("deform_conv", problem, reference)["output"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("operator", "result"), [("deform_im2col", "columns"), ("deform_conv", "output")])
@ANY_GEOMETRY
def test_gradients_are_finite_differences(
    rng: np.random.Generator, geometry: Geometry, operator: str, result: str
) -> None:
    problem = draw(rng, geometry, "float64")

    def loss(moved: Problem) -> float:
        return float(np.sum(call(operator, moved, reference)[result] * getattr(problem, result)))

    step = 1e-6  # moves a sample by far less than the band around the knots
    for name, gradient in call(f"{operator}_backward", problem, reference).items():
        array = getattr(problem, name)
        assert (gradient is None) == (array is None)
        if gradient is not None:
            direction = rng.normal(size=gradient.shape)
            ends = [loss(problem._replace(**{name: array + side * step * direction})) for side in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6, abs=1e-6)


@ANY_GEOMETRY
def test_col2im_is_the_adjoint_of_im2col(rng: np.random.Generator, geometry: Geometry) -> None:
    problem = draw(rng, geometry, "float64")
    columns = call("deform_im2col", problem, reference)["columns"]
    image = call("deform_col2im", problem, reference)["input"]
    assert np.sum(columns * problem.columns) == pytest.approx(np.sum(image * problem.input), rel=1e-10)


@pytest.mark.parametrize(("position", "value", "slope"), [(-1, 0, 1), (0, 1, 1), (1, 2, 2), (3, 8, -8), (4, 0, 0)])
def test_the_slope_at_a_knot_is_the_right_hand_one(position: float, value: float, slope: float) -> None:
    arguments = ([[[1, 2, 4, 8]]], [[[position]]], (1,), 4)
    assert reference.deform_im2col(*arguments).item() == value
    assert reference.deform_im2col_backward([[[1]]], *arguments).offset.item() == slope


@pytest.mark.parametrize("far", [np.nan, np.inf, -np.inf, 1e300, -3e9, 7.0, -4.5])
@pytest.mark.parametrize("dimension", [0, 1])
def test_samples_outside_read_nothing(dimension: int, far: float) -> None:
    image, offset = np.full((1, 1, 2, 3), np.nan), np.full((1, 2, 2, 3), 0.25)
    offset[:, dimension] = far
    mask = np.ones((1, 1, 2, 3))
    values = reference.deform_im2col(image, offset, (1, 1), mask=mask)
    gradients = reference.deform_im2col_backward(np.ones((1, 1, 6)), image, offset, (1, 1), mask=mask)
    assert not any(np.any(array) for array in (values, *gradients))


def test_offsets_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match="offset must have shape"):
        reference.deform_im2col(np.ones((1, 1, 4)), np.zeros((1, 3, 4)), (3,))
