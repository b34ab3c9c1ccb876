"""JAX: derivatives carried forward, and those of what was."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit.op import OPS

from .conftest import require
from .jax_problems import CALLS, drawn, function, loss, slope

jax: Any = None


@pytest.fixture(autouse=True)
def _jax() -> None:
    global jax
    jax = require("jax")


def near(found: Any, expected: Any) -> None:
    def compare(one: Any, other: Any) -> None:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(abs(other).max()))

    jax.tree.map(compare, found, expected)


def directions(arrays: list[Any]) -> list[Any]:
    rng = np.random.default_rng(3)
    return [x if x is None else jax.numpy.asarray(rng.normal(size=x.shape), x.dtype) for x in arrays]


def pushed(function: Callable[..., Any], arrays: list[Any], along: list[Any]) -> Any:
    """Return the derivative of a function in a direction; where an array is None, so is the direction."""
    return jax.jvp(function, tuple(arrays), tuple(along))[1]


@pytest.mark.parametrize("name", CALLS)
def test_finite_differences(name: str) -> None:
    """Of results, of their gradients, and of derivatives in a direction, which are carried back only."""
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        arrays = drawn(name, dtype="float64")
        slopes = jax.grad(loss(name), tuple(range(len(arrays))))
        check_grads(function(name), arrays, 1, ("fwd", "rev"), 1e-6, 1e-6)
        check_grads(slopes, arrays, 1, ("fwd", "rev"), 1e-5, 1e-5)
        push = functools.partial(jax.jvp, function(name))
        check_grads(lambda *pair: push(*pair)[1], (tuple(arrays), tuple(directions(arrays))), 1, ("rev",), 1e-6, 1e-6)


@pytest.mark.parametrize("transform", ["jit", "checkpoint", "vmap"])
@pytest.mark.parametrize("name", CALLS)
def test_derivatives_in_a_direction(name: str, transform: str) -> None:
    """They are the products of the Jacobians with it, with optional arrays and without."""
    count = [3] if transform == "vmap" else []
    arrays, op = drawn(name, *count), OPS[name]
    fewer = [None if array in op.optional else x for array, x in zip(op.arrays, arrays, strict=True)]
    for given in (arrays, fewer):
        along = directions(given)
        found = pushed(getattr(jax, transform)(function(name)), given, along)
        result = found + 0.5
        pairs = list(zip(given, along, strict=True))
        gradients = jax.vjp(getattr(jax, transform)(function(name)), *given)[1](result)
        products = [(x * y).sum() for (_, x), y in zip(pairs, gradients, strict=True) if x is not None]
        np.testing.assert_allclose((found * result).sum(), sum(products), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_one_direction_of_each_array(name: str) -> None:
    """Their sum is the derivative in all."""
    arrays = drawn(name)
    along = directions(arrays)
    whole = pushed(function(name), arrays, along)
    parts = []
    for i in range(len(arrays)):

        def rest(x: Any, i: int = i) -> Any:
            return function(name)(*arrays[:i], x, *arrays[i + 1 :])

        parts.append(pushed(rest, [arrays[i]], [along[i]]))
    near(sum(parts), whole)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_in_a_direction(name: str) -> None:
    """They are products with Hessians, which are symmetric."""
    arrays = drawn(name)
    along, places = directions(arrays), tuple(range(len(arrays)))
    slopes = jax.grad(loss(name), places)

    def dot(*given: Any) -> Any:
        return sum((x * y).sum() for x, y in zip(slopes(*given), along, strict=True))

    near(list(pushed(slopes, arrays, along)), list(jax.grad(dot, places)(*arrays)))


@pytest.mark.parametrize("name", ["grid_sample", "deform_conv2d"])
def test_hessians_in_every_order(name: str) -> None:
    arrays = drawn(name)
    place = OPS[name].arrays.index(OPS[name].coordinates[0])

    def total(x: Any) -> Any:
        return loss(name)(*arrays[:place], x, *arrays[place + 1 :])

    x = arrays[place]
    expected = jax.jacrev(jax.grad(total))(x)
    near(jax.hessian(total)(x), expected)
    near(jax.jit(jax.hessian(total))(x), expected)
    near(jax.jacrev(jax.jacfwd(total))(x), expected)


@pytest.mark.parametrize("name", ["grid_sample", "deform_conv2d"])
def test_maps_around_and_inside(name: str) -> None:
    arrays = drawn(name, 3)
    along = directions(arrays)

    def total(*values: Any) -> Any:
        return (pushed(function(name), list(values[: len(arrays)]), list(values[len(arrays) :])) ** 2).sum()

    places = tuple(range(2 * len(arrays)))
    slopes = jax.grad(total, places)
    rows = [slopes(*[x[i] for x in (*arrays, *along)]) for i in range(3)]
    expected = [np.stack(parts) for parts in zip(*rows, strict=True)]
    near(list(jax.vmap(slopes)(*arrays, *along)), expected)
    outside = jax.grad(lambda *values: jax.vmap(total)(*values).sum(), places)
    near(list(jax.jit(outside)(*arrays, *along)), expected)


def test_loops() -> None:
    """While loops are differentiated forward only, scans in both ways."""
    image, grid = drawn("grid_sample")

    def step(g: Any) -> Any:
        return g + 0.01 * slope(image, g)[..., :1, :1].sum() + 0.1 * cudakit.grid_sample(image, g).mean()

    def scanned(g: Any) -> Any:
        return jax.lax.scan(lambda g, _: (step(g), None), g, None, 3)[0]

    def looped(g: Any) -> Any:
        return jax.lax.while_loop(lambda pair: pair[0] < 3, lambda pair: (pair[0] + 1, step(pair[1])), (0, g))[1]

    along = jax.numpy.ones_like(grid)
    plain = pushed(lambda g: step(step(step(g))), [grid], [along])
    near(pushed(scanned, [grid], [along]), plain)
    near(pushed(looped, [grid], [along]), plain)
    total = jax.grad(lambda g: scanned(g).sum())(grid)
    np.testing.assert_allclose((total * along).sum(), plain.sum(), rtol=1e-4)


def test_linearize_and_its_transpose() -> None:
    arrays = drawn("deform_conv2d")
    along = directions(arrays)
    result, linear = jax.linearize(function("deform_conv2d"), *arrays)
    near(linear(*along), pushed(function("deform_conv2d"), arrays, along))
    transposed = jax.linear_transpose(linear, *along)(result)
    near(list(transposed), list(jax.vjp(function("deform_conv2d"), *arrays)[1](result)))


def test_second_derivatives_are_not_carried_forward_twice() -> None:
    image, grid = drawn("grid_sample")
    twice = jax.jacfwd(jax.jacfwd(lambda g: cudakit.grid_sample(image, g).sum()))
    rule = r"^grid_sample_double_backward: there are no second derivatives carried forward twice"
    with pytest.raises(RuntimeError, match=rule):
        twice(grid)


def test_what_nobody_wants_is_not_refused() -> None:
    """Third derivatives, where curvature is logged, stopped or dropped."""
    image, grid = drawn("grid_sample")

    def total(k: Any) -> Any:
        return (cudakit.grid_sample(image, grid * k) ** 2).sum()

    slope, curvature = jax.grad(total)(1.0), jax.hessian(total)(1.0)
    (_, logged), found = jax.value_and_grad(lambda k: (total(k), jax.hessian(total)(k)), has_aux=True)(1.0)
    near([found, logged], [slope, curvature])
    stopped = jax.grad(lambda k: total(k) + jax.lax.stop_gradient(jax.hessian(total)(k)))
    near([stopped(1.0), jax.jit(stopped)(1.0)], [slope, slope])

    def newton(k: Any, _: Any) -> tuple[Any, None]:
        return k - 1e-3 * jax.lax.stop_gradient(jax.hessian(total)(k)) * k, None

    near(jax.grad(lambda k: jax.lax.scan(newton, k, None, 1)[0])(1.0), 1 - 1e-3 * curvature)
    near(jax.grad(lambda k: pushed(lambda k: jax.value_and_grad(total)(k)[0], [k], [1.0]))(1.0), curvature)


@pytest.mark.parametrize(("name", "places"), [("grid_sample", [0]), ("deform_conv2d", [0]), ("deform_conv2d", [2, 3])])
def test_what_is_zero_is_not_refused(name: str, places: list[int]) -> None:
    """Operators are linear in some arrays, so all derivatives of a function of their results are there."""
    with jax.enable_x64(True):
        arrays = drawn(name, dtype="float64")

        def total(k: Any) -> Any:
            given = [x * k if i in places else x for i, x in enumerate(arrays)]
            return jax.numpy.sin(function(name)(*given)).sum()

        second, step = jax.jacfwd(jax.jacfwd(total)), 1e-5
        near(second(1.0), jax.hessian(total)(1.0))
        third = jax.grad(jax.grad(jax.grad(total)))(1.0)
        np.testing.assert_allclose(third, (second(1 + step) - second(1 - step)) / (2 * step), rtol=1e-5)


def test_third_derivatives_are_refused_in_every_order() -> None:
    image, grid = drawn("grid_sample")

    def total(k: Any) -> Any:
        return cudakit.grid_sample(image, grid * k).sum()

    for first, second, third in itertools.product((jax.jacfwd, jax.grad), repeat=3):
        with pytest.raises(
            RuntimeError, match=r"^grid_sample_double_backward: there are no (third|second) derivatives"
        ):
            first(second(third(total)))(1.0)


def test_what_is_left_out_costs_no_memory() -> None:
    """What a gradient waits for is the arrays alone, not the result of the operator."""
    image, grid = drawn("grid_sample")
    _, back = jax.vjp(cudakit.grid_sample, image, grid)
    kept = {x.shape for x in jax.tree.leaves(back) if hasattr(x, "shape")}
    assert kept == {image.shape, grid.shape}


def test_what_is_not_linear_is_not_transposed() -> None:
    image, grid = drawn("grid_sample")
    result = cudakit.grid_sample(image, grid)
    by_image = jax.linear_transpose(
        lambda x: cudakit.grid_sample_backward(result, x, grid, needs=("grid",)).grid, image
    )
    rule = r"^grid_sample_backward: can be transposed only with respect to grad_output"
    with pytest.raises(NotImplementedError, match=rule):
        by_image(grid)
