"""TensorFlow: tapes, variables, and what goes inside ``tf.function``."""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import require

tf: Any = None


@pytest.fixture(autouse=True)
def _tensorflow() -> None:
    global tf
    tf = require("tensorflow")


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = ((2, 4, 6, 5), (2, 18, 4, 3), (6, 2, 3, 3), (6,), (2, 9, 4, 3))
    return [rng.uniform(size=shape).astype(np.float32) for shape in shapes]


def convolve(image: Any, offset: Any, weight: Any, bias: Any = None, mask: Any = None) -> Any:
    return cudakit.deform_conv2d(image, offset, weight, bias, mask=mask)


def slopes(given: list[Any]) -> list[Any]:
    with tf.GradientTape() as tape:
        tape.watch(given)
        loss = tf.reduce_sum(convolve(*given) ** 2)
    return tape.gradient(loss, given)


@pytest.mark.parametrize("count", [3, 5])  # of the arrays: without bias and mask, and with both
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_equal_the_numpy_road(count: int, compiled: bool) -> None:
    given = arrays()[:count]
    found = (tf.function(slopes) if compiled else slopes)([tf.constant(x) for x in given])
    bias, mask = given[3:] or (None, None)
    upstream = 2 * convolve(*given)
    expected = cudakit.deform_conv2d_backward(upstream, *given[:3], bias, mask=mask)
    for one, other in zip(found, [x for x in expected if x is not None], strict=False):
        np.testing.assert_array_equal(one, other)


def test_variables_and_lowered_coordinates() -> None:
    theta = tf.Variable(np.eye(2, 3, dtype=np.float32)[None])
    image = tf.cast(tf.random.stateless_uniform((1, 3, 5, 5), (1, 2)), tf.bfloat16)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(cudakit.grid_sample(image, cudakit.affine_grid(theta, image.shape)), tf.float32))
    assert tape.gradient(loss, theta).dtype == tf.float32


def test_graph_of_unknown_sizes() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, 3, None, 5)), tf.TensorSpec((None, None, 4, 2))])
    def sample(image: Any, grid: Any) -> Any:
        found = cudakit.grid_sample(image, grid)
        assert found.shape.as_list() == [None, 3, None, 4]
        return found

    rng = np.random.default_rng(0)
    for batch in (1, 2):
        image, grid = (rng.uniform(size=s).astype(np.float32) for s in ((batch, 3, 6, 5), (batch, 3, 4, 2)))
        np.testing.assert_array_equal(sample(image, grid), cudakit.grid_sample(image, grid))


def test_graph_knows_its_shapes_and_checks_them() -> None:
    image, grid = tf.zeros((2, 3, 6, 5)), tf.zeros((2, 4, 3, 2))
    assert tf.function(cudakit.grid_sample).get_concrete_function(image, grid).output_shapes == (2, 3, 4, 3)
    with pytest.raises(ValueError, match=r"grid_sample: grid must have shape \(N=2"):
        tf.function(cudakit.grid_sample)(image, grid[:1])


def test_graph_of_an_unknown_batch() -> None:
    """Whose size `affine_grid` is not told either."""

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 3)), tf.TensorSpec((None, 3, 6, 5))])
    def turn(theta: Any, image: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(theta)
            grid = cudakit.affine_grid(theta, image.shape)
            loss = tf.reduce_sum(grid**2)
        assert grid.shape.as_list() == [None, 6, 5, 2]
        return grid, tape.gradient(loss, theta)

    rng = np.random.default_rng(0)
    for batch in (1, 3):
        theta, image = (rng.uniform(size=s).astype(np.float32) for s in ((batch, 2, 3), (batch, 3, 6, 5)))
        grid = cudakit.affine_grid(theta, image.shape)
        gradient = cudakit.affine_grid_backward(2 * grid, image.shape)
        for found, expected in zip(turn(theta, image), (grid, gradient), strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(TypeError, match=r"affine_grid: size must be .*, got \(None, 3, None, 5\)"):
        tf.function(cudakit.affine_grid)(theta, (None, 3, None, 5))
    with pytest.raises(TypeError, match=r"affine_grid: size must be .*, got \(None, 3, 6, 5\)"):
        cudakit.affine_grid(tf.constant(theta), (None, 3, 6, 5))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_that_arrive_as_slices(compiled: bool) -> None:
    """Those of ``tf.gather``."""
    image, grid = (tf.constant(np.random.default_rng(1).uniform(size=s)) for s in ((3, 2, 4, 4), (3, 3, 3, 2)))

    def slopes(image: Any, grid: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([image, grid])
            chosen = tf.gather(cudakit.grid_sample(image, grid), [0, 2])
        return tape.gradient(chosen, [image, grid])

    chosen = np.ones((3, 2, 3, 3))
    chosen[1] = 0
    expected = cudakit.grid_sample_backward(chosen, image.numpy(), grid.numpy())
    for found, values in zip((tf.function(slopes) if compiled else slopes)(image, grid), expected, strict=True):
        np.testing.assert_array_equal(found, values)


def squares(tensors: Any) -> Any:
    return tf.add_n([tf.reduce_sum(x**2) for x in tensors])


def penalty(given: list[Any]) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(given)
        total = squares(slopes(given))
    return [total, *tape.gradient(total, given)]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_gradients(compiled: bool) -> None:
    """Differences of penalties tell the same, in float64."""
    given, rng = [tf.constant(x.astype(np.float64)) for x in arrays()], np.random.default_rng(3)
    for i, gradient in enumerate((tf.function(penalty) if compiled else penalty)(given)[1:]):
        along = rng.standard_normal(gradient.shape) * 1e-6
        ends = ([x + sign * along if i == j else x for j, x in enumerate(given)] for sign in (1, -1))
        ahead, behind = (squares(slopes(end)) for end in ends)
        np.testing.assert_allclose((ahead - behind) / 2, tf.reduce_sum(gradient * along), rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_third_derivatives_are_refused(compiled: bool) -> None:
    def thrice(image: Any, grid: Any) -> Any:
        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            outer.watch(grid)
            inner.watch(image)
            found = cudakit.grid_sample_backward(tf.ones((2, 3, 4, 3)), image, grid, needs=("grid",)).grid
            curvature = inner.gradient(tf.reduce_sum(found**2), image)
            total = tf.reduce_sum(curvature**2)
        return outer.gradient(total, grid)

    image, grid = tf.ones((2, 3, 6, 5)), tf.zeros((2, 4, 3, 2))
    with pytest.raises(RuntimeError, match="grid_sample_double_backward: there are no third derivatives"):
        (tf.function(thrice) if compiled else thrice)(image, grid)


def test_tensors_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"grid_sample: input must have a dtype among .*, got string"):
        cudakit.grid_sample(tf.constant([["a"]]), tf.zeros((1, 2, 2, 2)))


def test_graph_of_unknown_dimensions() -> None:
    sample = tf.function(cudakit.grid_sample, input_signature=[tf.TensorSpec(None), tf.TensorSpec((1, 2, 2, 2))])
    with pytest.raises(ValueError, match="grid_sample: input must have a known number of dimensions"):
        sample(tf.zeros((1, 1, 3, 3)), tf.zeros((1, 2, 2, 2)))


def test_layer_of_keras() -> None:
    keras = pytest.importorskip("keras")

    class Layer(keras.layers.Layer):
        def build(self, _shape: Any) -> None:
            self.kernel = self.add_weight(shape=(4, 3, 3, 3))

        def call(self, x: Any) -> Any:
            return cudakit.deform_conv2d(x, tf.zeros((tf.shape(x)[0], 18, 4, 3)), self.kernel)

    image = keras.Input((3, 6, 5))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(Layer()(image))))
    before = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3, 6, 5), np.float32), np.ones((2, 2), np.float32), verbose=0)
    assert all(np.any(one != other) for one, other in zip(before, model.get_weights(), strict=True))


def test_nothing_needed_in_a_graph() -> None:
    image, grid = tf.zeros((2, 3, 6, 5)), tf.zeros((2, 4, 3, 2))

    @tf.function
    def backward(grad: Any) -> Any:
        assert tuple(cudakit.grid_sample_backward(grad, image, grid, needs=())) == (None, None)
        return grad

    backward(tf.ones((2, 3, 4, 3)))


def test_unneeded_gradients_are_none_in_a_graph() -> None:
    image, grid = tf.zeros((2, 3, 6, 5)), tf.zeros((2, 4, 3, 2))

    @tf.function
    def backward(grad: Any) -> Any:
        found = cudakit.grid_sample_backward(grad, image, grid, needs=("grid",))
        assert found.input is None
        return found.grid

    assert backward(tf.ones((2, 3, 4, 3))).shape == grid.shape
