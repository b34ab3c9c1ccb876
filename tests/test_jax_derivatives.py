"""JAX: gradients of gradients, and transposes."""

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


def given_places(arrays: Any) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(arrays) if x is not None)


def penalty(name: str, transform: Any = lambda f: f) -> Any:
    """Return a function that differentiates the squares of an operator's gradients."""

    def total(*arrays: Any) -> Any:
        slopes = transform(jax.grad(loss(name), given_places(arrays)))(*arrays)
        return sum((slope**2).sum() for slope in slopes)

    return lambda *arrays: jax.grad(total, given_places(arrays))(*arrays)


def penalty_of_torch(name: str, arrays: Any) -> Any:
    torch = require("torch")
    tensors = [None if x is None else torch.from_numpy(np.array(x)).requires_grad_() for x in arrays]
    given = [x for x in tensors if x is not None]
    slopes = torch.autograd.grad(loss(name)(*tensors), given, create_graph=True)
    return torch.autograd.grad(sum((slope**2).sum() for slope in slopes), given)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_gradients(name: str) -> None:
    """PyTorch's, which finite differences check, are the same, with optional arrays and without."""
    arrays, op = drawn(name), OPS[name]
    fewer = [None if array in op.optional else x for array, x in zip(op.arrays, arrays, strict=True)]
    for given in (arrays, fewer):
        for transform in (jax.jit, jax.checkpoint):
            for found, expected in zip(penalty(name, transform)(*given), penalty_of_torch(name, given), strict=True):
                np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["grid_sample", "deform_conv2d"])
def test_gradients_of_gradients_under_vmap(name: str) -> None:
    arrays = drawn(name, 3)
    found = jax.vmap(penalty(name))(*arrays)
    rows = [penalty(name)(*(x[i] for x in arrays)) for i in range(3)]
    for one, each in zip(found, zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(one, np.stack(each), rtol=1e-5, atol=1e-5 * float(np.abs(np.stack(each)).max()))


@pytest.mark.parametrize("transform", ["jit", "vmap", "checkpoint"])
def test_third_derivatives_are_refused(transform: str) -> None:
    image, grid = drawn("grid_sample", *([3] if transform == "vmap" else []))
    curvature = jax.grad(lambda x, g: (slope(x, g) ** 2).sum(), 1)
    thrice = jax.grad(lambda x: getattr(jax, transform)(curvature)(x, grid).sum())
    with pytest.raises(RuntimeError, match=r"^grid_sample_double_backward: there are no third derivatives"):
        thrice(image)


def test_gradients_by_directions() -> None:
    """In which gradients of gradients are linear: products with Hessians, differentiated by the vector."""
    image, grid = drawn("grid_sample")

    def product(along: Any) -> Any:
        return (jax.grad(lambda x: (slope(x, grid) * along).sum())(image) ** 2).sum()

    along = jax.numpy.ones_like(image)
    hessian = jax.jacrev(slope)(image, grid).reshape(image.size, image.size)
    expected = 2 * hessian.T @ hessian @ along.ravel()
    np.testing.assert_allclose(jax.grad(product)(along).ravel(), expected, rtol=1e-4, atol=1e-4)


LINEAR = [(name, array) for name in CALLS for array in OPS[name].arrays if array not in OPS[name].nonlinear]


@pytest.mark.parametrize(("name", "array"), LINEAR)
def test_transposes(name: str, array: str) -> None:
    """Gradients linearise first; solvers of linear equations transpose an operator itself."""
    arrays, place = drawn(name), OPS[name].arrays.index(array)

    def along(x: Any) -> Any:
        return function(name)(*arrays[:place], x, *arrays[place + 1 :])

    y, pull = jax.vjp(along, arrays[place])
    transposed = jax.linear_transpose(along, arrays[place])
    for found in (transposed(y), jax.jit(transposed)(y), jax.vmap(transposed)(y[None])):
        np.testing.assert_array_equal(np.asarray(found[0]).reshape(arrays[place].shape), pull(y)[0])


def test_what_is_not_linear_has_no_transpose() -> None:
    image, grid = drawn("grid_sample")
    with pytest.raises(NotImplementedError, match="grid_sample: can be transposed only with respect to one of input"):
        jax.linear_transpose(lambda grid: function("grid_sample")(image, grid), grid)(
            function("grid_sample")(image, grid)
        )
    x, offset, weight, *_ = drawn("deform_conv2d")
    with pytest.raises(
        NotImplementedError, match="deform_conv2d: can be transposed only with respect to one of input, "
    ):
        jax.linear_transpose(lambda *both: cudakit.deform_conv2d(both[0], offset, both[1]), x, weight)(
            jax.numpy.zeros((2, 6, 4, 3))
        )
