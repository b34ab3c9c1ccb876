"""PyTorch: autograd, only the gradients that are needed, memory formats."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import settings

from .conftest import MODES, PADDING_MODES, require
from .deformable_problems import GEOMETRIES, OPERATORS, Geometry, Problem, call, draw

torch = None


@pytest.fixture(autouse=True)
def _torch(torch_device: str) -> None:
    global torch
    torch = require("torch")


def arrays(n: int, dtype: str = "float64") -> tuple[Any, Any]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(n)
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


def test_subnormal_numbers_count_whatever_the_caller_does() -> None:
    """A thread that flushes them to zero, as those of some frameworks do, gets the results of any other."""
    weight, offset = torch.full((2, 20, 3, 3), 2e-5, dtype=torch.float16), torch.zeros(1, 18, 30, 30)
    image = torch.ones(1, 20, 30, 30, dtype=torch.float16)
    expected = cudakit.deform_conv2d(image, offset, weight, padding=1)
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor cannot flush them")
    try:
        found = cudakit.deform_conv2d(image, offset, weight, padding=1)
        tiny = torch.tensor([1e-39], device="cpu")
        assert (tiny * 1).item() == 0  # the caller's thread is as it was
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found, expected)
    assert expected.min() > 0


def test_gradients_under_vmap() -> None:
    """Of many gradients that come in at once."""
    image, grid, found = torch.randn(1, 2, 4, 4, requires_grad=True), torch.rand(1, 3, 3, 2), []
    weights = torch.randn(5, 1, 2, 3, 3)
    for output in (cudakit.grid_sample(image, grid), torch.nn.functional.grid_sample(image, grid, align_corners=False)):

        def gradient(weight: Any, output: Any = output) -> Any:
            return torch.autograd.grad(output, image, weight, retain_graph=True)[0]

        found.append(torch.func.vmap(gradient)(weights))
    torch.testing.assert_close(*found)


def test_signs_that_are_put_off() -> None:
    """Of imaginary parts of conjugates, as arguments and as gradients."""
    x, grid = torch.randn(1, 3, 5, 5), torch.rand(1, 4, 4, 2)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(cudakit.grid_sample(negative, grid), cudakit.grid_sample(-x, grid))
    weights, gradients = torch.randn(1, 3, 4, 4, dtype=torch.complex64), []
    for sample in (cudakit.grid_sample, lambda *a: torch.nn.functional.grid_sample(*a, align_corners=False)):
        image = x.clone().requires_grad_()
        output = sample(image, grid)
        (torch.complex(0 * output, output).conj() * weights).real.sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients)


def test_zeros_that_are_implied() -> None:
    image, grid = (x.detach() for x in arrays(2))
    zeros = torch._efficientzerotensor(image.shape, dtype=image.dtype, device=image.device)
    assert torch.equal(cudakit.grid_sample(zeros, grid), torch.zeros_like(cudakit.grid_sample(image, grid)))


def test_half_precision_keeps_coordinates_in_float32() -> None:
    image, _ = arrays(2, "bfloat16")
    _, grid = arrays(2, "float32")
    cudakit.grid_sample(image, grid).float().sum().backward()
    assert (image.grad.dtype, grid.grad.dtype) == (torch.bfloat16, torch.float32)


def test_channels_last_memory_format() -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    image = torch.randn(2, 8, 5, 6, generator=generator)
    grid = torch.rand(2, 4, 3, 2, generator=generator)
    turned = image.to(memory_format=torch.channels_last)
    torch.testing.assert_close(cudakit.grid_sample(turned, grid), cudakit.grid_sample(image, grid))


def test_sparse_tensor_is_refused() -> None:
    image, grid = arrays(2)
    with pytest.raises(TypeError, match="grid_sample: input must"):
        cudakit.grid_sample(image.detach().to_sparse(), grid.detach())


def tensors(geometry: Geometry, dtype: str = "float64", offset_dtype: str | None = None) -> Problem:
    """Return a random problem whose tensors ask for gradients."""
    problem = draw(np.random.default_rng(8), geometry, dtype, offset_dtype)

    def make(name: str, array: Any) -> Any:
        kind = (offset_dtype or dtype) if name in ("offset", "mask") else dtype
        return torch.tensor(array, dtype=getattr(torch, kind), requires_grad=True)

    return problem.map(make)


# Small: gradcheck looks at every number of every argument.
DEFORM_GEOMETRIES = {
    "1-D": Geometry((4,), (2,), padding=(1, 0), channels=2, out_channels=2, offset_groups=2),
    "2-D": Geometry((3, 4), (2, 2), (2, 1), 1, 1, channels=2, out_channels=2, groups=2),
    "2-D plain": Geometry((3, 3), (2, 1), channels=1, out_channels=2, masked=False, biased=False),
    "3-D": Geometry((2, 3, 2), (1, 2, 1), batch=1, channels=2, out_channels=1),
}


@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im", "deform_conv"])
@pytest.mark.parametrize("name", DEFORM_GEOMETRIES)
def test_deformable_gradients(name: str, operator: str) -> None:
    problem = tensors(DEFORM_GEOMETRIES[name])
    names = [key for key in problem._fields if key != "geometry" and getattr(problem, key) is not None]

    def function(*values: Any) -> Any:
        (result,) = call(operator, problem._replace(**dict(zip(names, values, strict=True)))).values()
        return result

    assert torch.autograd.gradcheck(function, tuple(getattr(problem, key) for key in names))


@pytest.mark.parametrize("needed", ["input", "offset", "weight", "bias", "mask"])
def test_only_the_needed_gradient_of_a_convolution(needed: str) -> None:
    problem = tensors(GEOMETRIES["2-D"], "float32")
    alone = problem.map(lambda name, tensor: tensor.detach().requires_grad_(name == needed))
    for each in (problem, alone):
        call("deform_conv", each)["output"].backward(each.output.detach())
    for name in ("input", "offset", "weight", "bias", "mask"):
        gradient = getattr(alone, name).grad
        assert (gradient is None) == (name != needed)
        if gradient is not None:
            torch.testing.assert_close(gradient, getattr(problem, name).grad)


def test_gradients_of_half_precision_convolutions() -> None:
    problem = tensors(GEOMETRIES["2-D"], "bfloat16", "float32")
    call("deform_conv", problem)["output"].float().sum().backward()
    for name, dtype in (("input", "bfloat16"), ("weight", "bfloat16"), ("offset", "float32"), ("mask", "float32")):
        assert getattr(problem, name).grad.dtype is getattr(torch, dtype)


@pytest.mark.parametrize("name", ["2-D", "2-D plain"])
def test_deformable_operators_record_nothing_without_need(name: str) -> None:
    problem = tensors(GEOMETRIES[name])
    plain = problem.map(lambda _, tensor: tensor.detach())
    for operator in OPERATORS:
        with torch.no_grad():
            expected = call(operator, problem)
        for key, result in call(operator, plain).items():
            assert (result is None) == (expected[key] is None)
            assert result is None or not (result.requires_grad or expected[key].requires_grad)
            assert result is None or torch.equal(result, expected[key])


def test_channels_last_memory_format_of_a_convolution() -> None:
    problem = tensors(GEOMETRIES["2-D"]._replace(channels=8), "float32").map(lambda _, tensor: tensor.detach())
    turned = problem.map(lambda _, x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x)
    for operator in OPERATORS:
        results = call(operator, turned)
        for name, expected in call(operator, problem).items():
            torch.testing.assert_close(results[name], expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_convolution_with_gradients() -> None:
    problem = tensors(GEOMETRIES["2-D"], "float32")

    def loss(x: Any) -> Any:
        return call("deform_conv", problem._replace(input=2 * x))["output"].sum()

    torch.compile(loss, backend="eager")(problem.input).backward()
    compiled, problem.input.grad = problem.input.grad, None
    loss(problem.input).backward()
    torch.testing.assert_close(compiled, problem.input.grad)


def test_names_that_profilers_show() -> None:
    image, grid = arrays(2)
    with torch.profiler.profile() as seen:
        result = cudakit.grid_sample(image, grid)
        result.sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert names >= {"cudakit::grid_sample", "cudakit::grid_sample_backward", "GridSampleBackward"}
    assert result.grad_fn.name() == "GridSampleBackward"


@pytest.fixture
def deterministic() -> Iterator[Any]:
    """Return what switches PyTorch's deterministic mode, which ends with the test."""
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_counts_for_a_gpu(deterministic: Any) -> None:
    from cudakit.torch import FRAMEWORK

    assert not FRAMEWORK.deterministic()
    for warn_only in (True, False):
        deterministic(True, warn_only=warn_only)
        assert FRAMEWORK.deterministic()
    image, grid = arrays(2)
    torch.autograd.gradgradcheck(cudakit.grid_sample, (image, grid))  # a CPU adds up in order


def test_threads_are_as_many_as_pytorch_s_until_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from cudakit.torch import FRAMEWORK

    monkeypatch.setattr(settings, "_threads", None)
    monkeypatch.setattr(settings, "_cores", 4)
    before = torch.get_num_threads()
    try:
        for number, expected in ((1, 1), (3, 3), (5, 4)):
            torch.set_num_threads(number)
            assert settings.num_threads_of(FRAMEWORK.threads) == expected
            assert settings.num_threads_of(None) == cudakit.get_num_threads() == 4
        cudakit.set_num_threads(2)
        assert settings.num_threads_of(FRAMEWORK.threads) == settings.num_threads_of(None) == 2
    finally:
        torch.set_num_threads(before)
