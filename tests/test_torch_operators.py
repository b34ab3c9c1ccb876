"""PyTorch's compilers, exporters and transforms: every operator as one node, with the numbers of the eager road."""

import pickle
import warnings
from io import BytesIO
from typing import Any

import pytest

import cudakit
from cudakit.op import OPS

from .conftest import require

torch: Any = None


@pytest.fixture(autouse=True)
def _torch(torch_device: str) -> None:
    global torch
    torch = require("torch")
    torch.manual_seed(0)


MOVES = (3, 1, 0, 1, "channels_first")  # kernel_size, stride, padding, dilation, data_format
# Shapes of the arrays in order, and the other arguments.
CALLS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "affine_grid": (((2, 2, 3),), ((2, 1, 4, 3), False)),
    "affine_grid_backward": (((2, 4, 3, 2),), ((2, 1, 4, 3), False)),
    "grid_sample": (((2, 3, 6, 5), (2, 4, 3, 2)), ("bilinear", "zeros", False, "channels_first")),
    "grid_sample_backward": (
        ((2, 3, 4, 3), (2, 3, 6, 5), (2, 4, 3, 2)),
        ("bilinear", "zeros", False, "channels_first", ("grid",)),
    ),
    "deform_im2col": (((2, 4, 6, 5), (2, 18, 4, 3), (2, 9, 4, 3)), MOVES),
    "deform_im2col_backward": (
        ((2, 36, 12), (2, 4, 6, 5), (2, 18, 4, 3), (2, 9, 4, 3)),
        (*MOVES, (), ("input", "mask")),
    ),
    "deform_col2im": (((2, 36, 12), (2, 18, 4, 3), (2, 9, 4, 3)), (*MOVES, (6, 5))),
    "deform_col2im_backward": (
        ((2, 4, 6, 5), (2, 36, 12), (2, 18, 4, 3), (2, 9, 4, 3)),
        (*MOVES, (6, 5), ("offset",)),
    ),
}
for n, (out, size, taps) in {1: ((4,), (6,), 3), 2: ((4, 3), (6, 5), 9), 3: ((2, 2, 1), (4, 4, 3), 27)}.items():
    shapes = ((2, 4, *size), (2, taps * n, *out), (6, 2, *[3] * n), (6,), (2, taps, *out))
    moves = (1, 0, 1, "channels_first", None, False)
    CALLS[f"deform_conv{n}d"] = (shapes, moves)
    CALLS[f"deform_conv{n}d_backward"] = (((2, 6, *out), *shapes), (*moves, ("input", "weight", "bias", "mask")))
for name, (shapes, options) in [call for call in CALLS.items() if call[0].endswith("_backward")]:
    # What differentiates gradients takes one by each of them, then what they are computed from.
    op = OPS[name]
    first = ((2, 2, 3),) if name == "affine_grid_backward" else shapes[1:]
    several = tuple(shapes[i] for i in op.saved)
    CALLS[name.replace("_backward", "_double_backward")] = ((*first, *several), options)
OPTIONAL = [(name, array) for name in CALLS for array in OPS[name].optional]
DIFFERENTIABLE = [name for name in CALLS if OPS[name].backward is not None]


def tensors(name: str, *batch: int, without: str = "", grad: bool = False) -> list[Any]:
    """Draw the arrays of a call, with more leading axes for `batch`; `without` an array there is no direction of it."""
    named, absent = zip(OPS[name].arrays, CALLS[name][0], strict=True), (without, f"grad_grad_{without}")
    return [None if array in absent else torch.rand(*batch, *shape, requires_grad=grad) for array, shape in named]


def run(name: str, *arrays: Any) -> tuple[Any, ...]:
    """Call an operator and return the results that are there."""
    return tuple(result for result in OPS[name](arrays, *CALLS[name][1]) if result is not None)


def gradients(function: Any, arrays: list[Any]) -> tuple[Any, ...]:
    """Return the gradients of the sum of the results' squares."""
    loss = sum(result.square().sum() for result in function(*arrays))
    return torch.autograd.grad(loss, [x for x in arrays if x is not None])


def same(found: Any, expected: Any) -> None:
    """Compare bits on a CPU; cuBLAS adds up in an order of its own for every size of a batch."""
    exact = {"rtol": 0, "atol": 0} if torch.get_default_device().type == "cpu" else {}
    torch.testing.assert_close(found, expected, **exact)


def test_every_operator_is_here() -> None:
    assert set(CALLS) == set(OPS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # it looks at one itself
@pytest.mark.parametrize(("name", "without"), [*((name, "") for name in CALLS), *OPTIONAL])
def test_opcheck(name: str, without: str) -> None:
    from cudakit.torch.operators import _OPERATORS
    from cudakit.torch.records import flattened

    options = flattened(OPS[name].options(CALLS[name][1]))
    arrays = tensors(name, without=without, grad=OPS[name].backward is not None)
    torch.library.opcheck(_OPERATORS[name].function, (*arrays, *options))


@pytest.mark.parametrize("name", CALLS)
def test_compiled_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    arrays = tensors(name)
    compiled = torch.compile(lambda *given: run(name, *given), fullgraph=True, backend="aot_eager")
    same(compiled(*arrays), run(name, *arrays))


@pytest.mark.parametrize(
    ("name", "without"), [*((name, "") for name in DIFFERENTIABLE), *(x for x in OPTIONAL if x[0] in DIFFERENTIABLE)]
)
def test_compiled_gradients(name: str, without: str) -> None:
    torch._dynamo.reset()
    arrays = tensors(name, without=without, grad=True)
    compiled = torch.compile(lambda *given: run(name, *given), fullgraph=True, backend="aot_eager")
    same(gradients(compiled, arrays), gradients(lambda *given: run(name, *given), arrays))


def transformed(image: Any, theta: Any) -> Any:
    """A spatial transformer whose sizes come from its argument."""
    return cudakit.grid_sample(image, cudakit.affine_grid(theta, image.shape))


def test_dynamic_shapes_compile_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, height in ((4, 8), (5, 9), (6, 11)):
        image, theta = torch.rand(batch, 3, height, 7), torch.rand(batch, 2, 3)
        same(compiled(image, theta), transformed(image, theta))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # Inductor's own
def test_inductor() -> None:
    torch._dynamo.reset()
    image, theta = torch.rand(2, 3, 5, 7, requires_grad=True), torch.rand(2, 2, 3, requires_grad=True)
    compiled = torch.compile(lambda x, t: (transformed(2 * x, t),), fullgraph=True)
    found = gradients(compiled, [image, theta])
    torch.testing.assert_close(found, gradients(lambda x, t: (transformed(2 * x, t),), [image, theta]))


@pytest.mark.parametrize("strict", [False, True])
def test_export_has_one_node_for_each_operator(strict: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, image: Any, theta: Any) -> Any:
            return transformed(image, theta)

    batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
    sizes = {"image": {0: batch, 2: height}, "theta": {0: batch}}
    drawn = (torch.rand(2, 3, 5, 7), torch.rand(2, 2, 3))
    program = torch.export.export(Model(), drawn, dynamic_shapes=sizes, strict=strict)
    nodes = [str(node.target) for node in program.graph.nodes if "cudakit" in str(node.target)]
    assert nodes == ["cudakit.affine_grid.default", "cudakit.grid_sample.default"]
    image, theta = torch.rand(4, 3, 8, 7), torch.rand(4, 2, 3)
    same(program.module()(image, theta), transformed(image, theta))


def test_compiled_errors_name_the_argument() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(cudakit.grid_sample, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"grid_sample: grid must have shape \(N=2"):
        compiled(torch.rand(2, 3, 5, 7), torch.rand(3, 4, 4, 2))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("axes", [0, 1, None])
def test_vmap_equals_a_loop(name: str, axes: int | None) -> None:
    arrays = tensors(name, 3)
    places = [0] * len(arrays)
    if axes is None:  # all but the first
        arrays[0], places[0] = arrays[0][0], None
        if len(arrays) == 1:
            pytest.skip("nothing would be mapped")
    elif axes:
        arrays, places = [x.movedim(0, axes) for x in arrays], [axes] * len(arrays)
    found = torch.func.vmap(lambda *given: run(name, *given), tuple(places))(*arrays)
    picked = zip(arrays, places, strict=True)
    rows = zip(*(x.expand(3, *x.shape) if place is None else x.movedim(place, 0) for x, place in picked), strict=True)
    same(found, tuple(map(torch.stack, zip(*(run(name, *row) for row in rows), strict=True))))


@pytest.mark.parametrize("name", CALLS)
def test_vmap_over_nothing(name: str) -> None:
    arrays = tensors(name, 3)
    one = torch.func.vmap(lambda *given: run(name, *given))(*arrays)
    none = torch.func.vmap(lambda *given: run(name, *given))(*(x[:0] for x in arrays))
    assert [x.shape for x in none] == [(0, *x.shape[1:]) for x in one]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_several_at_once(name: str) -> None:
    """What ``torch.autograd.functional.jacobian(vectorize=True)`` does."""
    arrays = tensors(name, grad=True)
    results = run(name, *arrays)
    several = [torch.rand(4, *result.shape) for result in results]
    found = torch.autograd.grad(results, arrays, several, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(results, arrays, grads, retain_graph=True) for grads in zip(*several, strict=True)]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*each, strict=True))))


@pytest.mark.parametrize("name", CALLS)
def test_traced(name: str) -> None:
    """By TorchScript: one node, which is saved, and works on other numbers."""
    given, others, memory = tuple(tensors(name)), tensors(name), BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated, and of shapes that are fixed
        traced = torch.jit.trace(lambda *arrays: run(name, *arrays), given)
        torch.jit.save(traced, memory)
        memory.seek(0)
        loaded = torch.jit.load(memory)
    assert str(traced.graph).count("cudakit::") == 1
    same(loaded(*others), run(name, *others))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_traced_sizes_are_warned_of() -> None:
    def shrink(theta: Any, image: Any) -> Any:
        return cudakit.affine_grid(theta, image.shape)

    with pytest.warns(torch.jit.TracerWarning, match="affine_grid: torch.jit.trace takes the sizes .* for constants"):
        torch.jit.trace(shrink, (torch.rand(2, 2, 3), torch.rand(2, 3, 4, 5)), check_trace=False)


@pytest.mark.parametrize("name", CALLS)
def test_functionalized(name: str) -> None:
    arrays = tensors(name)
    same(torch.func.functionalize(lambda *arrays: run(name, *arrays))(*arrays), run(name, *arrays))


@pytest.mark.parametrize("name", CALLS)
def test_symbols(name: str) -> None:
    """In a graph of ``torch.fx``: one node for each operator, from which it is made again elsewhere."""
    arrays, graph = tensors(name), torch.fx.Graph()
    symbols = [torch.fx.Proxy(graph.placeholder(array)) for array in OPS[name].arrays]
    graph.output(tuple(x.node for x in run(name, *symbols)))
    assert [node.name for node in graph.nodes if getattr(node.target, "__name__", "") == name] == [name]
    copy = pickle.loads(pickle.dumps(torch.fx.GraphModule(torch.nn.Module(), graph)))
    same(tuple(x for x in copy(*arrays) if x is not None), run(name, *arrays))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_transforms_of_gradients(name: str) -> None:
    places = tuple(range(len(OPS[name].arrays)))
    arrays = tensors(name, 3)

    def loss(*given: Any) -> Any:
        return sum(result.square().sum() for result in run(name, *given))

    rows = [gradients(lambda *given: run(name, *given), [x[i].requires_grad_() for x in arrays]) for i in range(3)]
    expected = tuple(map(torch.stack, zip(*rows, strict=True)))
    same(torch.func.vmap(torch.func.grad(loss, places))(*arrays), expected)
    same(torch.func.grad(lambda *given: torch.func.vmap(loss)(*given).sum(), places)(*arrays), expected)


def test_compiled_errors_of_options_name_them() -> None:
    image, grid = torch.randn(1, 2, 4, 4), torch.zeros(1, 3, 3, 2)
    with pytest.raises(Exception, match="grid_sample: mode must be one of"):
        torch.compile(lambda: cudakit.grid_sample(image, grid, "nope"), fullgraph=True, backend="eager")()


def test_compiled_autograd() -> None:
    from torch._dynamo import compiled_autograd

    image, grid = torch.randn(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 3, 3, 2, requires_grad=True)
    expected = torch.autograd.grad(cudakit.grid_sample(image, grid).sum(), (image, grid))
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        cudakit.grid_sample(image, grid).sum().backward()
    torch.testing.assert_close((image.grad, grid.grad), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_keeps_coordinates_in_float32(torch_device: str, compiled: bool) -> None:
    torch._dynamo.reset()
    function = torch.compile(transformed, fullgraph=True, backend="aot_eager") if compiled else transformed
    theta = torch.rand(2, 2, 3).bfloat16().requires_grad_()
    for dtype in (torch.bfloat16, torch.float32):
        image = torch.rand(2, 3, 5, 7).to(dtype)
        with torch.autocast(torch_device, torch.bfloat16):
            grid = cudakit.affine_grid(theta, image.shape)
            found = function(image, theta)
        assert grid.dtype == torch.float32
        assert found.dtype == dtype
        same(found, transformed(image, theta.float()))
    found.sum().backward()
    assert theta.grad.dtype == torch.bfloat16


def test_autocast_promotes_data_to_the_widest(torch_device: str) -> None:
    name = "deform_col2im"
    columns, offset, mask = tensors(name)
    with torch.autocast(torch_device, torch.bfloat16):
        (found,) = run(name, columns.bfloat16(), offset.bfloat16(), mask.bfloat16())
        (wide,) = run(name, columns, offset.bfloat16(), mask.bfloat16())
    same(found, run(name, columns.bfloat16(), offset.bfloat16().float(), mask.bfloat16().float())[0])
    assert wide.dtype == torch.float32


def test_autocast_leaves_what_is_refused(torch_device: str) -> None:
    image, theta = torch.rand(2, 3, 5, 7), torch.rand(2, 2, 3)
    refused = pytest.raises(TypeError, match="grid_sample: input must have a dtype")
    with torch.autocast(torch_device, torch.bfloat16), refused:
        cudakit.grid_sample(image.int(), cudakit.affine_grid(theta, image.shape))


def test_autocast_lowers_the_data_of_a_convolution(torch_device: str) -> None:
    arrays = tensors("deform_conv2d", grad=True)
    with torch.autocast(torch_device, torch.bfloat16):
        (found,) = run("deform_conv2d", *arrays)
    image, offset, weight, bias, mask = arrays
    same(found, run("deform_conv2d", image.bfloat16(), offset, weight.bfloat16(), bias.bfloat16(), mask)[0])
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert {x.grad.dtype for x in arrays} == {torch.float32}
    with torch.autocast(torch_device, torch.bfloat16):
        (double,) = run("deform_conv2d", *(x.double() for x in arrays))
    assert double.dtype == torch.float64
