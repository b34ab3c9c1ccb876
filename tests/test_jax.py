"""JAX: jit, grad, vmap, scan, dtypes, and errors at trace time."""

from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit.op import OPS

from .conftest import require
from .deformable_problems import GEOMETRIES, Problem, call, draw
from .jax_problems import CALLS, drawn, function, loss, slope

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


def stacked(results: Any) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *results)


def same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_every_differentiable_operator_is_here() -> None:
    assert set(CALLS) == {name for name, op in OPS.items() if not op.gradients_by}


@pytest.mark.parametrize("name", CALLS)
def test_vmap_equals_a_loop(name: str) -> None:
    arrays = drawn(name, 3)
    found = jax.jit(jax.vmap(function(name)))(*arrays)
    same(found, stacked([function(name)(*(x[i] for x in arrays)) for i in range(3)]))


@pytest.mark.parametrize("name", [name for name in CALLS if len(CALLS[name][0]) > 1])
def test_vmap_of_one_argument_and_another_axis(name: str) -> None:
    for place in range(len(CALLS[name][0])):
        arrays = drawn(name)
        arrays[place] = jax.numpy.stack([arrays[place], 2 * arrays[place]], -1)
        axes = [-1 if i == place else None for i in range(len(arrays))]
        found = jax.vmap(function(name), axes)(*arrays)
        rows = [[x[..., i] if axis else x for x, axis in zip(arrays, axes, strict=True)] for i in range(2)]
        same(found, stacked([function(name)(*row) for row in rows]))


@pytest.mark.parametrize("name", CALLS)
def test_vmap_of_gradients_and_gradients_of_vmap(name: str) -> None:
    arrays = drawn(name, 3)
    places = tuple(range(len(arrays)))
    expected = stacked([jax.grad(loss(name), places)(*(x[i] for x in arrays)) for i in range(3)])
    same(jax.vmap(jax.grad(loss(name), places))(*arrays), expected)
    same(jax.jit(jax.grad(lambda *given: jax.vmap(loss(name))(*given).sum(), places))(*arrays), expected)


def test_gradient_by_shared_weights_sums_over_the_mapped_axis() -> None:
    image, offset, weight, *_ = drawn("deform_conv2d", 3)

    def total(w: Any) -> Any:
        return jax.vmap(lambda x, o: (cudakit.deform_conv2d(x, o, w) ** 2).sum())(image, offset).sum()

    rows = [
        jax.grad(lambda w, i=i: (cudakit.deform_conv2d(image[i], offset[i], w) ** 2).sum())(weight[0]) for i in range(3)
    ]
    np.testing.assert_allclose(jax.grad(total)(weight[0]), sum(rows), rtol=1e-5)


def test_mapped_axis_becomes_part_of_the_batch() -> None:
    text = str(jax.make_jaxpr(jax.vmap(function("grid_sample")))(*drawn("grid_sample", 3)))
    assert text.count("grid_sample[") == 1
    assert "scan" not in text
    assert "f32[6,3,4,3]" in text


def test_needed_gradients_in_turn() -> None:
    image, grid = drawn("grid_sample", 1)
    mapped = jax.vmap(loss("grid_sample"))
    both = jax.grad(lambda x, g: mapped(x, g).sum(), (0, 1))(image, grid)
    for place in (0, 1, 0):
        same(jax.grad(lambda x, g: mapped(x, g).sum(), place)(image, grid), both[place])
        same(jax.grad(lambda x, g: mapped(x, g).sum(), (0, 1))(image, grid), both)


def test_vmap_of_vmap() -> None:
    thetas = jax.numpy.stack(drawn("affine_grid", 3) * 2)
    found = jax.vmap(jax.vmap(function("affine_grid")))(thetas)
    same(found, stacked([jax.vmap(function("affine_grid"))(theta) for theta in thetas]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["grid_sample", "deform_conv2d"])
def test_dtypes_under_jit_and_grad(name: str, dtype: str) -> None:
    with jax.enable_x64(True):
        arrays = drawn(name, dtype=dtype)
        found = jax.jit(jax.grad(loss(name), tuple(range(len(arrays)))))(*arrays)
        assert [str(x.dtype) for x in found] == [dtype] * len(arrays)
        expected, slopes = jax.vjp(jax.jit(function(name)), *arrays)
        op, options, numbers = OPS[name], CALLS[name][1], tuple(np.asarray(x) for x in arrays)
        own = op(numbers, *options)[0]
        np.testing.assert_array_equal(np.asarray(expected).view(np.uint8), own.view(np.uint8))
        for one, other in zip(slopes(expected), op.backward((own, *numbers), *options), strict=True):
            np.testing.assert_array_equal(np.asarray(one).view(np.uint8), other.view(np.uint8))


def test_absent_arrays() -> None:
    image, offset, weight, *_ = drawn("deform_conv2d")
    found = jax.jit(jax.grad(lambda w: (cudakit.deform_conv2d(image, offset, w) ** 2).sum()))(weight)
    result = cudakit.deform_conv2d(*map(np.asarray, (image, offset, weight)))
    expected = cudakit.deform_conv2d_backward(2 * result, *map(np.asarray, (image, offset, weight)), needs=("weight",))
    np.testing.assert_allclose(found, expected.weight, rtol=1e-5)


def test_scan() -> None:
    image, grid = map(jax.numpy.asarray, arrays())
    images = jax.numpy.stack([image, 2 * image, -image])
    expected = np.stack([cudakit.grid_sample(np.asarray(x), np.asarray(grid)) for x in images])
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


def test_sizes_that_are_symbols_are_refused() -> None:
    image, offset, weight, *_ = drawn("deform_conv2d")
    batch, *_ = jax.export.symbolic_shape("b")

    def symbolic(x: Any) -> Any:
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

    rule = "must have sizes that are known when JAX traces"
    with pytest.raises(TypeError, match=rf"^deform_conv2d: input {rule}, got \(b, 4, 6, 5\)"):
        jax.export.export(jax.jit(cudakit.deform_conv2d))(symbolic(image), symbolic(offset), weight)
    with pytest.raises(TypeError, match=rf"^deform_conv2d: offset {rule}, got \(b, 18, 4, 3\)"):
        jax.export.export(jax.jit(cudakit.deform_conv2d))(image, symbolic(offset), weight)


def test_gradients_that_nothing_differentiates() -> None:
    image, grid = drawn("grid_sample")
    step = slope(image, grid)
    found = jax.grad(lambda x: (x * jax.lax.stop_gradient(slope(x, grid))).sum())(image)
    same(found, step)

    def after(x: Any, step: Any) -> Any:
        return (cudakit.grid_sample(x - step, grid) ** 2).sum()

    found = jax.jit(jax.grad(lambda x: after(x, jax.lax.stop_gradient(slope(x, grid)))))(image)
    same(found, jax.grad(after)(image, step))


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
