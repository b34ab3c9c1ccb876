"""``torch.onnx.export`` writes ONNX's own operators, which ONNX Runtime computes as cudakit does."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import MODES, OUT, PADDING_MODES, SIZES, require
from .deformable_problems import GEOMETRIES, Geometry, channels_last, draw

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # by PyTorch itself
torch: Any = None
FORMATS = ("channels_first", "channels_last")


@pytest.fixture(autouse=True)
def _torch() -> None:
    global torch
    torch = require("torch")
    require("onnxruntime")
    torch.manual_seed(0)


def exported(function: Callable[..., Any], *tensors: Any, dynamic: Any = None) -> tuple[Any, list[str]]:
    """Return a function of tensors that runs in ONNX Runtime, and the names of its nodes."""
    import onnx
    import onnxruntime

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, tensors: Any) -> Any:
            return function(*tensors)

    shapes = None if dynamic is None else [dynamic]
    program = torch.onnx.export(Model().eval(), (tensors,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    onnx.checker.check_model(program.model_proto, full_check=True)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())

    def run(*tensors: Any) -> list[Any]:
        names = [argument.name for argument in session.get_inputs()]
        feed = dict(zip(names, (x.numpy() for x in tensors), strict=True))
        return [torch.from_numpy(found) for found in session.run(None, feed)]

    return run, [node.op_type for node in program.model_proto.graph.node]


def check(function: Callable[..., Any], *tensors: Any, operator: str, **tolerances: float) -> None:
    run, nodes = exported(function, *tensors)
    assert operator in nodes
    expected = function(*tensors)
    for found, result in zip(run(*tensors), expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(found, result, **tolerances or {"rtol": 1e-5, "atol": 1e-5})


@pytest.mark.parametrize("n", [1, 2, 3])
def test_grid_sample(n: int) -> None:
    # ONNX Runtime samples volumes in two modes only.
    choices = list(itertools.product(MODES[: 2 if n == 3 else 3], PADDING_MODES, (False, True)))

    def samples(x: Any, last: Any, grid: Any) -> Any:
        every = (cudakit.grid_sample(x, grid, *choice) for choice in choices)
        return (*every, cudakit.grid_sample(last, grid, data_format="channels_last"))

    grid = torch.rand(2, *OUT[n], n) * 2.6 - 1.3
    check(samples, torch.rand(2, 3, *SIZES[n]), torch.rand(2, *SIZES[n], 3), grid, operator="GridSample")


def test_coordinates_of_float32_beside_half_precision() -> None:
    x, grid = torch.rand(2, 3, 5, 7).half(), torch.rand(2, 4, 3, 2) * 2.6 - 1.3
    check(cudakit.grid_sample, x, grid, operator="GridSample", rtol=1e-3, atol=1e-3)
    offset, weight = torch.randn(2, 18, 3, 5), torch.rand(4, 3, 3, 3).half()
    check(cudakit.deform_conv2d, x, offset, weight, operator="DeformConv", rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(2, 1, 4, 5), (2, 1, 3, 4, 5), (2, 1, 1, 5), (2, 1, 4, 1), (2, 1, 3, 1, 5)])
def test_affine_grid(size: tuple[int, ...]) -> None:
    def grids(theta: Any) -> Any:
        return cudakit.affine_grid(theta, size), cudakit.affine_grid(theta, size, align_corners=True)

    check(grids, torch.randn(2, len(size) - 2, len(size) - 1), operator="AffineGrid")


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_deformable_operators(geometry: Geometry, rng: np.random.Generator) -> None:
    problem = draw(rng, geometry)._asdict()
    del problem["geometry"]
    names = [
        name
        for name, array in problem.items()
        if name in ("input", "offset", "weight", "bias", "mask") and array is not None
    ]
    tensors = [torch.tensor(problem[name], dtype=torch.float32) for name in names]
    moved = [torch.tensor(channels_last(geometry, name, problem[name]), dtype=torch.float32) for name in names]
    convolve = getattr(cudakit, f"deform_conv{geometry.n}d")

    def results(tensors: Any, data_format: str) -> Any:
        given = {"mask": None, "bias": None, **dict(zip(names, tensors, strict=True))}
        sampled = {name: given[name] for name in ("input", "offset", "mask")}
        moves = dict(zip(("stride", "padding", "dilation"), geometry.places, strict=True), data_format=data_format)
        return convolve(**given, **moves), cudakit.deform_im2col(**sampled, **moves, kernel_size=geometry.kernel)

    def both(*tensors: Any) -> Any:
        return *results(tensors[: len(names)], FORMATS[0]), *results(tensors[len(names) :], FORMATS[1])

    check(both, *tensors, *moved, operator="GridSample" if geometry.n == 3 else "DeformConv")


def test_sizes_that_vary() -> None:
    auto = torch.export.Dim.AUTO

    def model(x: Any, theta: Any, offset: Any, weight: Any) -> Any:
        turned = cudakit.grid_sample(x, cudakit.affine_grid(theta, x.shape))
        return cudakit.deform_conv2d(turned, offset, weight, padding=1)

    def drawn(batch: int, *size: int) -> tuple[Any, ...]:
        theta, weight = torch.randn(batch, 2, 3) / 2, torch.randn(4, 3, 3, 3)
        return torch.rand(batch, 3, *size), theta, torch.randn(batch, 18, *size), weight

    image = {0: auto, 2: auto, 3: auto}
    run, nodes = exported(model, *drawn(2, 6, 7), dynamic=(image, {0: auto}, image, None))
    assert {"AffineGrid", "GridSample", "DeformConv"} <= set(nodes)
    for tensors in (drawn(2, 6, 7), drawn(3, 9, 5)):
        torch.testing.assert_close(run(*tensors)[0], model(*tensors), rtol=1e-5, atol=1e-5)


def test_what_is_mapped() -> None:
    """The calls are one, with a larger batch."""
    x, grid = torch.rand(2, 3, 4, 5, 6), torch.rand(3, 2, 4, 4, 2)
    check(torch.func.vmap(cudakit.grid_sample, (1, 0)), x, grid, operator="GridSample")


def test_layers() -> None:
    from cudakit.torch.nn import DeformConv2dPack, ModulatedDeformConv2dPack

    layers = torch.nn.Sequential(DeformConv2dPack(3, 8, 3, padding=1), ModulatedDeformConv2dPack(8, 4, 3, padding=1))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.uniform_(-0.3, 0.3)
        check(lambda x: layers(x), torch.rand(2, 3, 8, 9), operator="DeformConv", rtol=1e-4, atol=1e-4)


def test_what_onnx_lacks_is_refused_by_name() -> None:
    columns, offset = torch.rand(2, 36, 30), torch.randn(2, 18, 5, 6)
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(lambda c, o: cudakit.deform_col2im(c, o, (5, 6), 3, padding=1), columns, offset)
    assert "cudakit.deform_col2im" in str(caught.value.__cause__)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(cudakit.grid_sample, torch.rand(2, 3, 5, 6), torch.rand(3, 4, 4, 2))
    assert "grid_sample: grid must have shape (N=2, H_out, W_out, 2), got (3, 4, 4, 2)" in str(caught.value.__cause__)
