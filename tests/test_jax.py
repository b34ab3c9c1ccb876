"""JAX: jit, grad, vmap, scan, dtypes, and errors at trace time."""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import require
from .deformable_problems import GEOMETRIES, Problem, call, draw

jax: Any = None


@pytest.fixture(autouse=True)
def _jax() -> None:
    global jax
    jax = require("jax")


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    image = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    return image, rng.uniform(-1.2, 1.2, (2, 4, 3, 2)).astype(np.float32)


def test_jit_and_gradients_equal_the_numpy_road() -> None:
    image, grid = arrays()
    weight = np.random.default_rng(6).standard_normal((2, 3, 4, 3)).astype(np.float32)

    def loss(x: Any, g: Any) -> Any:
        return (cudakit.grid_sample(x, g, "bicubic", "reflection") * weight).sum()

    by_image, by_grid = jax.jit(jax.grad(loss, (0, 1)))(image, jax.numpy.asarray(grid))
    expected = cudakit.grid_sample_backward(weight, image, grid, "bicubic", "reflection")
    np.testing.assert_array_equal(by_image, expected.input)
    np.testing.assert_array_equal(by_grid, expected.grid)


def test_gradient_of_one_argument() -> None:
    image, grid = map(jax.numpy.asarray, arrays())
    both = jax.grad(lambda x, g: cudakit.grid_sample(x, g).sum(), (0, 1))(image, grid)
    one = jax.grad(lambda g: cudakit.grid_sample(image, g).sum())(grid)
    np.testing.assert_array_equal(one, both[1])


def test_vmap_and_scan() -> None:
    image, grid = map(jax.numpy.asarray, arrays())
    images = jax.numpy.stack([image, 2 * image, -image])
    expected = np.stack([cudakit.grid_sample(np.asarray(x), np.asarray(grid)) for x in images])
    np.testing.assert_array_equal(jax.vmap(lambda x: cudakit.grid_sample(x, grid))(images), expected)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, cudakit.grid_sample(x, grid)), 0, images)
    np.testing.assert_array_equal(scanned, expected)


def test_affine_grid_gradient() -> None:
    theta = jax.numpy.asarray(np.eye(2, 3, dtype=np.float32)[None])
    slope = jax.grad(lambda t: cudakit.affine_grid(t, (1, 1, 3, 4))[..., 0].sum())(theta)
    grad = np.zeros((1, 3, 4, 2), np.float32)
    grad[..., 0] = 1
    np.testing.assert_array_equal(slope, cudakit.affine_grid_backward(grad, (1, 1, 3, 4)))


def test_unneeded_gradients_are_none() -> None:
    image, grid = map(jax.numpy.asarray, arrays())
    gradients = cudakit.grid_sample_backward(jax.numpy.ones((2, 3, 4, 3)), image, grid, needs=("grid",))
    assert gradients.input is None
    assert gradients.grid.shape == grid.shape


def test_bad_shapes_are_refused_while_tracing() -> None:
    image, grid = arrays()
    with pytest.raises(ValueError, match="grid_sample: grid must have shape"):
        jax.jit(cudakit.grid_sample)(jax.numpy.asarray(image), jax.numpy.asarray(grid[:1]))


def deformable(name: str) -> Problem:
    """Return a random problem in float32, of NumPy's arrays."""
    return draw(np.random.default_rng(9), GEOMETRIES[name]).map(lambda _, array: array.astype(np.float32))


@pytest.mark.parametrize("name", ["1-D", "2-D of all sorts", "2-D plain", "3-D"])
@pytest.mark.parametrize(("operator", "result"), [("deform_im2col", "columns"), ("deform_conv", "output")])
def test_deformable_gradients_equal_the_numpy_road(operator: str, result: str, name: str) -> None:
    problem = deformable(name)
    expected = call(f"{operator}_backward", problem)
    given = {key: getattr(problem, key) for key, gradient in expected.items() if gradient is not None}

    def loss(arrays: dict[str, Any]) -> Any:
        made = problem.map(lambda _, array: jax.numpy.asarray(array))._replace(**arrays)
        return (call(operator, made)[result] * getattr(problem, result)).sum()

    gradients = jax.jit(jax.grad(loss))({key: jax.numpy.asarray(array) for key, array in given.items()})
    for key, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected[key])


@pytest.mark.parametrize("name", ["2-D of all sorts", "2-D plain"])
def test_col2im_gradient_by_the_columns_is_im2col(name: str) -> None:
    problem = deformable(name)
    made = problem.map(lambda _, array: jax.numpy.asarray(array))

    def loss(columns: Any) -> Any:
        return (call("deform_col2im", made._replace(columns=columns))["input"] * made.input).sum()

    np.testing.assert_array_equal(jax.grad(loss)(made.columns), call("deform_im2col", problem)["columns"])


def test_vmap_of_a_convolution() -> None:
    problem = deformable("2-D of all sorts")
    made = problem.map(lambda _, array: jax.numpy.asarray(array))
    images = jax.numpy.stack([made.input, 2 * made.input])
    mapped = jax.vmap(lambda x: call("deform_conv", made._replace(input=x))["output"])(images)
    for image, output in zip(images, mapped, strict=True):
        expected = call("deform_conv", problem._replace(input=np.asarray(image)))["output"]
        np.testing.assert_array_equal(output, expected)


def test_bad_offsets_are_refused_while_tracing() -> None:
    problem = deformable("2-D")
    with pytest.raises(ValueError, match="deform_conv2d: offset must have shape"):
        jax.jit(cudakit.deform_conv2d)(problem.input, problem.offset[:, :-1], problem.weight)
