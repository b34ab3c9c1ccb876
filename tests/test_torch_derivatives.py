"""PyTorch: gradients of gradients, and forward mode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cudakit

from . import conftest
from .conftest import SOME_COMBINATIONS, require
from .deformable_problems import Geometry, call, draw

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by what makes dual tensors
torch: Any = None


@pytest.fixture(autouse=True)
def _torch(torch_device: str) -> None:
    global torch
    torch = require("torch")


def tensor(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def sampling(n: int, align_corners: bool = False) -> tuple[Any, Any]:
    """Return an image and a grid."""
    sizes, out = (3, 4, 2)[:n], (2, 1, 2)[:n]
    problem = conftest.draw(np.random.default_rng(n), sizes, out, channels=2, align_corners=align_corners)
    return tensor(problem.input), tensor(problem.grid)


def sampled(x: Any, grid: Any) -> Any:
    return cudakit.grid_sample(x, grid, "bicubic", "border")


def check(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """Check first derivatives in forward mode, and gradients of gradients in both."""
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize(("n", "mode", "padding_mode", "align_corners"), SOME_COMBINATIONS)
def test_grid_sample(n: int, mode: str, padding_mode: str, align_corners: bool) -> None:
    x, grid = sampling(n, align_corners)
    if mode == "nearest":
        check(lambda x: cudakit.grid_sample(x, grid.detach(), mode, padding_mode, align_corners), (x,))
    else:
        check(lambda x, grid: cudakit.grid_sample(x, grid, mode, padding_mode, align_corners), (x, grid))


@pytest.mark.parametrize("size", [(2, 1, 4, 3), (2, 1, 3, 2, 4)])
def test_affine_grid(size: tuple[int, ...]) -> None:
    theta = tensor(np.random.default_rng(0).normal(size=(2, len(size) - 2, len(size) - 1)))
    check(lambda t: cudakit.affine_grid(t, size) ** 2, (theta,))


GEOMETRIES = {
    "1-D": Geometry((4,), (2,), padding=(1, 0), channels=2, out_channels=2, offset_groups=2),
    "2-D plain": Geometry((3, 3), (2, 1), batch=1, channels=2, out_channels=2, groups=2, masked=False, biased=False),
    "3-D": Geometry((2, 3, 2), (1, 2, 1), batch=1, channels=2, out_channels=1),
}


@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deformable_operators(geometry: str, operator: str) -> None:
    problem = draw(np.random.default_rng(8), GEOMETRIES[geometry]).map(lambda _, x: tensor(x))
    takes = {"deform_im2col": "input offset mask", "deform_col2im": "columns offset mask"}
    names = takes.get(operator, "input offset weight bias mask").split()
    names = [name for name in names if getattr(problem, name) is not None]

    def function(*values: Any) -> Any:
        (result,) = call(operator, problem._replace(**dict(zip(names, values, strict=True)))).values()
        return result

    check(function, tuple(getattr(problem, name) for name in names))


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=["image", "grid", "both"])
@pytest.mark.parametrize("of", [0, 1], ids=["of the image's", "of the grid's"])
def test_every_argument_counts_in_a_penalty(of: int, asked: tuple[int, ...]) -> None:
    """Those of the other arguments, too, where only one of two gradients is penalised."""
    tensors = sampling(2)
    slope = torch.autograd.grad(sampled(*tensors).square().sum(), tensors[of], create_graph=True)[0]
    found = torch.autograd.grad(slope.square().sum(), [tensors[i] for i in asked])
    whole = torch.autograd.functional.hessian(lambda *xs: sampled(*xs).square().sum(), tensors)[of]
    for i, gradient in zip(asked, found, strict=True):
        expected = torch.tensordot(slope, whole[i], slope.dim()) * 2
        torch.testing.assert_close(gradient, expected)


def test_hessians_of_every_kind_agree() -> None:
    def loss(x: Any, grid: Any) -> Any:
        return (sampled(x, grid) ** 3).sum()

    inputs = tuple(x.detach() for x in sampling(2))
    expected = torch.autograd.functional.hessian(loss, inputs)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, inputs, vectorize=True), expected)
    slopes = torch.func.grad(loss, (0, 1))
    torch.testing.assert_close(torch.func.jacrev(slopes, (0, 1))(*inputs), expected)
    torch.testing.assert_close(torch.func.jacfwd(slopes, (0, 1))(*inputs), expected)


def test_half_precision_penalty() -> None:
    """Between bfloat16 images and a float32 grid, gradients of gradients have the dtypes of what they are by."""
    x, grid = (y.detach() for y in sampling(2))
    x, grid = x.bfloat16().requires_grad_(), grid.float().requires_grad_()
    slopes = torch.autograd.grad(sampled(x, grid).float().square().sum(), (x, grid), create_graph=True)
    found = torch.autograd.grad(sum(slope.float().square().sum() for slope in slopes), (x, grid))
    assert [y.dtype for y in found] == [torch.bfloat16, torch.float32]
    exact = [y.detach().double().requires_grad_() for y in (x, grid)]
    slopes = torch.autograd.grad(sampled(*exact).square().sum(), exact, create_graph=True)
    expected = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), exact)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_gradients_are_operators_themselves() -> None:
    """The public functions of gradients take part in autograd."""
    x, grid = sampling(2)
    found = cudakit.grid_sample_backward(sampled(x, grid), x, grid, "bicubic", "border", needs=("grid",))
    assert found.input is None
    slope = torch.autograd.grad(sampled(x, grid).square().sum() / 2, grid, create_graph=True)[0]
    torch.testing.assert_close(found.grid, slope)
    for one, other in zip(
        torch.autograd.grad(found.grid.sum(), (x, grid)), torch.autograd.grad(slope.sum(), (x, grid)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("asked", [0, 1], ids=["image", "grid"])
def test_third_derivatives_are_refused_by_every_argument(asked: int) -> None:
    """Or a penalty would silently count nothing in those of the other arguments."""
    tensors = sampling(2)
    (slope,) = torch.autograd.grad(sampled(*tensors).sum(), tensors[1], create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="grid_sample_double_backward: there are no third derivatives"):
        torch.autograd.grad(curvature.sum(), tensors[asked])


def test_third_derivatives_that_are_zero() -> None:
    """Of an operator in an array in which it is linear: those of a function of its results are there."""
    x, grid = (y.detach() for y in sampling(2))
    scale, step = torch.ones((), dtype=torch.float64, requires_grad=True), 1e-5

    def derivative(order: int, at: Any) -> Any:
        value = sampled(x * at, grid).sin().sum()
        for _ in range(order):
            (value,) = torch.autograd.grad(value, at, create_graph=True)
        return value

    expected = (derivative(2, scale + step) - derivative(2, scale - step)) / (2 * step)
    torch.testing.assert_close(derivative(3, scale), expected, rtol=1e-5, atol=1e-5)


def test_third_derivatives_are_refused_by_transforms() -> None:
    x, grid = (y.detach() for y in sampling(2))
    slope = torch.func.grad(lambda g: sampled(x, g).square().sum())
    curvature = torch.func.grad(lambda g: slope(g).square().sum())
    with pytest.raises(RuntimeError, match="grid_sample_double_backward: there are no third derivatives"):
        torch.func.grad(lambda g: curvature(g).sum())(grid)


def test_forward_mode_where_nothing_asks_for_gradients() -> None:
    x, grid = (y.detach() for y in sampling(2))
    along = torch.ones_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, along)
        result = torch.autograd.forward_ad.unpack_dual(sampled(dual, grid))
    torch.testing.assert_close(result.primal, sampled(x, grid))
    torch.testing.assert_close(result.tangent, sampled(along, grid))  # linear in the image
    value, tangent = torch.func.jvp(lambda x: sampled(x, grid), (x,), (along,))
    torch.testing.assert_close((value, tangent), (result.primal, result.tangent))


def test_many_directions_at_once() -> None:
    x, grid = (y.detach() for y in sampling(2))
    several = torch.tensor(np.random.default_rng(0).normal(size=(3, *grid.shape)))

    def push(along: Any) -> Any:
        return torch.func.jvp(lambda g: sampled(x, g), (grid,), (along,))[1]

    torch.testing.assert_close(torch.func.vmap(push)(several), torch.stack([push(along) for along in several]))


def test_products_with_hessians() -> None:
    """From the right by differentiating twice by what gradients of gradients are times, which those are linear in."""

    def loss(x: Any, grid: Any) -> Any:
        return (sampled(x, grid) ** 3).sum()

    inputs = tuple(x.detach() for x in sampling(2))
    along = tuple(torch.ones_like(x) for x in inputs)
    expected = torch.autograd.functional.vhp(loss, inputs, along)
    torch.testing.assert_close(torch.autograd.functional.hvp(loss, inputs, along), expected)


def pushed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arguments and directions: the derivative of `function` along these."""

    def push(*values: Any) -> Any:
        half = len(values) // 2
        return torch.func.jvp(function, values[:half], values[half:])[1]

    return push


def test_derivatives_in_a_direction_have_gradients() -> None:
    inputs = sampling(2)
    along = tuple(tensor(np.random.default_rng(1).normal(size=x.shape)) for x in inputs)
    assert torch.autograd.gradcheck(pushed(sampled), (*inputs, *along))
    problem = draw(np.random.default_rng(8), GEOMETRIES["2-D plain"]).map(lambda _, x: tensor(x))
    inputs = (problem.input, problem.offset, problem.weight)
    along = tuple(tensor(np.random.default_rng(2).normal(size=x.shape)) for x in inputs)
    assert torch.autograd.gradcheck(pushed(cudakit.deform_conv2d), (*inputs, *along))


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_derivatives_in_a_direction_have_gradients_at_once(moved: int) -> None:
    """While the tensors still have their tangents."""
    from torch.autograd import forward_ad

    drawn = draw(np.random.default_rng(8), GEOMETRIES["2-D plain"]).map(lambda _, x: tensor(x))
    inputs = [drawn.input, drawn.offset, drawn.weight]
    along = torch.ones_like(inputs[moved])

    def slope(*values: Any) -> Any:
        directions = [along if i == moved else torch.zeros_like(x) for i, x in enumerate(values)]
        return torch.func.jvp(cudakit.deform_conv2d, values, tuple(directions))[1].square().sum()

    with forward_ad.dual_level():
        given = [forward_ad.make_dual(x, along) if i == moved else x for i, x in enumerate(inputs)]
        tangent = forward_ad.unpack_dual(cudakit.deform_conv2d(*given)).tangent
        found = torch.autograd.grad(tangent.square().sum(), inputs, materialize_grads=True)
    torch.testing.assert_close(found, torch.func.grad(slope, (0, 1, 2))(*[x.detach() for x in inputs]))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # by PyTorch's linearize
@pytest.mark.parametrize("how", ["mode", "kind", "linearize"])
def test_forward_mode_past_those_who_watch(how: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    class Kind(torch.Tensor):
        pass

    x, grid = (y.detach() for y in sampling(2))
    along = torch.ones_like(x)
    if how == "linearize":
        torch.testing.assert_close(torch.func.linearize(lambda x: sampled(x, grid), x)[1](along), sampled(along, grid))
        return
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, along)
        if how == "mode":
            with FlopCounterMode(display=False):
                result = sampled(dual, grid)
        else:
            result = sampled(dual, grid.as_subclass(Kind)).as_subclass(torch.Tensor)
        tangent = torch.autograd.forward_ad.unpack_dual(result).tangent
    torch.testing.assert_close(tangent.as_subclass(torch.Tensor), sampled(along, grid))


def test_forward_mode_is_not_compiled() -> None:
    """It breaks the graph, or is refused where that may not be."""
    x, grid = (y.detach() for y in sampling(2))

    def push(x: Any) -> Any:
        return torch.func.jvp(lambda x: sampled(x, grid), (x,), (x,))[1]

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"grid_sample: torch\.compile carries no derivatives forward"):
        torch.compile(push, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        result = torch.compile(lambda x: sampled(x, grid), backend="eager")(dual)
        tangent = torch.autograd.forward_ad.unpack_dual(result).tangent
    torch.testing.assert_close(tangent, sampled(x, grid))
