"""Streams on a GPU: a slow producer, an operator and a consumer on a stream of their own, with nothing in between.

A device-to-device copy of hundreds of megabytes keeps the stream busy for longer than a launch takes, so an operator on
any other stream would read what was there before.
"""

from typing import Any

import numpy as np
import pytest

import cudakit

from .conftest import devices, require

pytestmark = pytest.mark.skipif("cuda" not in devices(), reason="there is no GPU")

SHAPE = (2, 8, 32, 32)
FACTORS = tuple(range(1, 21))  # of the input, so that what is left of an earlier call is wrong
SLOW = 1 << 28  # bytes


def problem() -> tuple[Any, ...]:
    """Return image, offset and weight of a convolution that has a workspace, and its result."""
    rng = np.random.default_rng(1)
    image, offset, weight = (
        rng.standard_normal(shape, np.float32) for shape in (SHAPE, (2, 18, 32, 32), (16, 8, 3, 3))
    )
    return image, offset, weight, cudakit.deform_conv2d(image, offset, weight, padding=1)


def check(found: Any, expected: Any) -> None:
    """Compare twice the results with those of multiplied inputs."""
    for factor, one in zip(FACTORS, found, strict=True):
        np.testing.assert_allclose(one / (2 * factor), expected, rtol=1e-4, atol=1e-4)


def test_cupy() -> None:
    cupy = require("cupy")
    image, offset, weight, expected = problem()
    source, target = cupy.zeros(SLOW, cupy.uint8), cupy.zeros(SLOW, cupy.uint8)
    new, offset, weight = map(cupy.asarray, (image, offset, weight))
    x = cupy.zeros_like(new)
    cupy.cuda.Device().synchronize()
    found = []
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for factor in FACTORS:
            x.fill(0)
            target[...] = source
            x[...] = factor * new
            found.append(2 * cudakit.deform_conv2d(x, offset, weight, padding=1))
        stream.synchronize()
    check([one.get() for one in found], expected)


def test_torch() -> None:
    torch = require("torch")
    image, offset, weight, expected = problem()
    source, target = (torch.zeros(SLOW, dtype=torch.uint8, device="cuda") for _ in range(2))
    new, offset, weight = (torch.from_numpy(a).cuda() for a in (image, offset, weight))
    x = torch.zeros_like(new)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    found = []
    with torch.cuda.stream(stream):
        for factor in FACTORS:
            x.zero_()
            target.copy_(source)
            x.copy_(factor * new)
            found.append(2 * cudakit.deform_conv2d(x, offset, weight, padding=1))
    stream.synchronize()
    check([one.cpu().numpy() for one in found], expected)


def test_jax() -> None:
    jax = require("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    image, offset, weight, expected = problem()

    @jax.jit
    def step(factor: Any, x: Any, offset: Any, weight: Any, large: Any) -> Any:
        slow = jax.lax.fori_loop(0, 50, lambda _, matrix: matrix @ matrix, large)
        return 2 * cudakit.deform_conv2d(factor * x + slow[0, 1], offset, weight, padding=1)

    given = [*(jax.numpy.asarray(a) for a in (image, offset, weight)), jax.numpy.eye(2048)]
    check([np.asarray(one) for one in [step(factor, *given) for factor in FACTORS]], expected)


def test_tensorflow() -> None:
    """It does not tell its stream, which is not the default one; a call waits instead."""
    tf = require("tensorflow")
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow has no GPU here")
    *arrays, expected = problem()
    with tf.device("GPU:0"):
        new, offset, weight = map(tf.constant, arrays)
        large, found = tf.eye(2048), []
        for factor in FACTORS:
            slow = large
            for _ in range(20):
                slow = slow @ large
            found.append(2 * cudakit.deform_conv2d(factor * new + slow[0, 1], offset, weight, padding=1))
    check([one.numpy() for one in found], expected)


def test_paddle() -> None:
    paddle = require("paddle")
    if not paddle.is_compiled_with_cuda():
        pytest.skip("Paddle has no GPU here")
    *arrays, expected = problem()
    new, offset, weight = (paddle.to_tensor(x, place="gpu:0") for x in arrays)
    large = paddle.to_tensor(np.eye(2048, dtype=np.float32), place="gpu:0")
    found = []
    with paddle.device.stream_guard(paddle.device.Stream("gpu:0")):
        for factor in FACTORS:
            slow = large
            for _ in range(20):
                slow = slow @ large
            found.append(2 * cudakit.deform_conv2d(factor * new + slow[0, 1], offset, weight, padding=1))
        results = [one.numpy() for one in found]
    check(results, expected)


def test_a_cuda_graph_of_torch_holds_a_training_step() -> None:
    """Workspaces come from PyTorch's allocator, which keeps what a graph was captured with."""
    torch = require("torch")
    image, offset, weight, expected = problem()
    x, offset, weight = (torch.from_numpy(a).cuda() for a in (image, offset, weight))
    weight.requires_grad_()

    def step() -> tuple[Any, Any]:
        y = cudakit.deform_conv2d(x, offset, weight, padding=1)
        return y, torch.autograd.grad(y.square().sum(), weight)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()  # compiles and loads, which a capture does not allow
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y, slope = step()
    for factor in (1.0, 3.0):
        x.copy_(torch.from_numpy(image) * factor)
        graph.replay()
        torch.cuda.synchronize()
        np.testing.assert_allclose(y.detach().cpu().numpy(), factor * expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(slope, step()[1], rtol=1e-3, atol=1e-2)
