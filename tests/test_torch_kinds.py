"""PyTorch: tensors that have no numbers (meta, fake), tensors of tensors, and what is none."""

from typing import Any

import pytest

import cudakit

from .conftest import require

torch: Any = None


@pytest.fixture(autouse=True)
def _torch() -> None:
    global torch
    torch = require("torch")


def test_what_is_no_tensor_is_refused_by_name_inside_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda image, grid: cudakit.grid_sample(image, grid), backend="eager")
    with pytest.raises(TypeError, match=r"grid_sample: input must be a tensor, got list"):
        compiled([1.0], torch.zeros(1, 2, 2, 2))
    with pytest.raises(TypeError, match=r"grid_sample: grid must be an? .*, got NoneType"):
        compiled(torch.zeros(1, 1, 2, 2), None)


def test_the_least_workspace_is_the_device_s_own() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def convolve(device: str) -> Any:
        shapes = (1, 4, 8, 8), (1, 18, 8, 8), (4, 4, 3, 3)
        return cudakit.deform_conv2d(*[torch.empty(x, device=device) for x in shapes], padding=1, workspace=50_000)

    with FakeTensorMode():
        assert convolve("cuda").shape == (1, 4, 8, 8)
        with pytest.raises(ValueError, match="deform_conv2d: workspace must be at least"):
            convolve("cpu")


def test_tensors_without_memory() -> None:
    class Model(torch.nn.Module):
        def forward(self, image: Any, grid: Any) -> Any:
            return cudakit.grid_sample(image, grid)

    image, grid = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 4, 3, 2, device="meta")
    (found,) = torch.export.export(Model(), (image, grid)).graph_signature.user_outputs
    assert found
    assert torch.func.vmap(cudakit.grid_sample)(image[None], grid[None]).shape == (1, 2, 3, 4, 3)
    found = cudakit.grid_sample(image, grid.requires_grad_())
    found.sum().backward()
    assert (found.shape, found.device.type, grid.grad.shape) == ((2, 3, 4, 3), "meta", grid.shape)
    with pytest.raises(TypeError, match="grid_sample: input must be a dense tensor on a CPU or CUDA device"):
        cudakit.grid_sample(image, torch.zeros(grid.shape))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_of_tensors_are_refused() -> None:
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.zeros(3, 3, 2)], layout=layout)
        with pytest.raises(TypeError, match=r"^grid_sample: input must be a dense tensor, got a nested one$"):
            cudakit.grid_sample(nested, torch.zeros(1, 3, 3, 2))


def test_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        found = cudakit.grid_sample(torch.rand(2, 3, 5, 7), torch.rand(2, 5, 7, 2))
    assert (found.shape, type(found).__name__) == ((2, 3, 5, 7), "FakeTensor")


def test_meta_tensors_beside_others_are_refused() -> None:
    """Where a transform or a subclass sends a call through the dispatcher, which takes any meta tensor's word."""
    x, grid = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 2, 2, device="meta")

    class Own(torch.Tensor):  # type: ignore[misc]
        pass

    refusal = "grid_sample: grid must be on the device of input, .*, got meta"
    for call in (
        lambda: torch.func.vmap(lambda x: cudakit.grid_sample(x, grid))(x[None]),
        lambda: torch.func.grad(lambda x: cudakit.grid_sample(x, grid).sum())(x),
        lambda: cudakit.grid_sample(x.as_subclass(Own), grid),
    ):
        with pytest.raises(TypeError, match=refusal):
            call()


@pytest.mark.parametrize("kind", ["sparse", "float8"])
def test_tensors_of_other_kinds_are_refused_under_autocast_and_transforms(kind: str) -> None:
    x = torch.zeros(1, 2, 5, 5)
    x = x.to_sparse() if kind == "sparse" else x.to(torch.float8_e4m3fn)
    grid = torch.zeros(1, 2, 2, 2)
    with torch.autocast(x.device.type, torch.bfloat16), pytest.raises(TypeError, match="grid_sample: input must "):
        cudakit.grid_sample(x, grid)
    with pytest.raises(TypeError, match="grid_sample: input must "):
        torch.func.grad(lambda grid: cudakit.grid_sample(x, grid).sum())(grid)
