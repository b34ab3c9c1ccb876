"""JAX on two devices: `shard_map`, and meshes whose axes are part of the types."""

import os
import subprocess
import sys

from .conftest import require

SHARDED = """
import numpy as np, jax, cudakit
from jax.sharding import Mesh, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("batch",))
assert mesh.size == 2, mesh
rng = np.random.default_rng(0)
image = jax.numpy.asarray(rng.standard_normal((4, 3, 6, 5)), "float32")
theta = jax.numpy.asarray(rng.standard_normal((4, 2, 3)), "float32")
weight = jax.numpy.asarray(rng.standard_normal((2, 3, 3, 3)), "float32")
offset = jax.numpy.zeros((4, 18, 4, 3), "float32")

def layers(x, t, o, w):
    return cudakit.deform_conv2d(cudakit.grid_sample(x, cudakit.affine_grid(t, x.shape)), o, w)

def push(*arrays):
    return jax.jvp(layers, arrays, arrays)

parts, whole = PartitionSpec("batch"), PartitionSpec()
slopes = jax.grad(lambda *arrays: (layers(*arrays) ** 2).sum(), (0, 1, 2, 3))
specs = (parts, parts, parts, whole)
for function, out in ((slopes, specs), (push, (parts, parts))):
    sharded = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out))
    found = sharded(image, theta, offset, weight)
    assert all(len(x.sharding.device_set) == 2 for x in found), found
    for one, other in zip(found, function(image, theta, offset, weight)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

first, second = jax.devices()
try:
    cudakit.grid_sample(jax.device_put(image, second), jax.device_put(cudakit.affine_grid(theta, image.shape), first))
except TypeError as error:
    assert str(error) == "grid_sample: grid must be on the device of input, cpu:1, got cpu:0", error
else:
    raise AssertionError
"""


EXPLICIT = """
import numpy as np, jax, jax.numpy as jnp, cudakit
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

def tents(centres, size):
    return jnp.maximum(0, 1 - abs(((centres + 1) * size - 1)[..., None] / 2 - jnp.arange(size)))

@jax.jit
def plain(x, g, w):
    sampled = jnp.einsum("nchw,noph,nopw->ncop", x, tents(g[..., 1], 6), tents(g[..., 0], 5))
    return jnp.einsum("ncop,dc->ndop", sampled, w)

def ours(x, g, w):
    return cudakit.deform_conv2d(cudakit.grid_sample(x, g), jnp.zeros((4, 2, 4, 3)), w[..., None, None])

def slopes(function):
    return jax.grad(lambda *arrays: (function(*arrays) ** 2).sum(), (0, 1, 2))

def pushed(function):
    return lambda *arrays: jax.jvp(function, arrays, arrays)

def check(found, expected):
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4), found, expected)

mesh = jax.make_mesh((2,), ("b",), axis_types=(AxisType.Explicit,))
rng = np.random.default_rng(0)
arrays = [rng.uniform(-1, 1, shape).astype("float32") for shape in ((4, 2, 6, 5), (4, 4, 3, 2), (2, 2))]
stacks = [np.stack([x, -x / 2]) for x in arrays]

def spread(arrays, specs):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs)]

def types(arrays):
    return list(map(jax.typeof, arrays))

with jax.set_mesh(mesh):
    expected = plain(*arrays), slopes(plain)(*map(jnp.asarray, arrays))
    for specs in ((P("b"), P("b"), P()), (P(None, None, "b"), P(), P("b"))):
        given = spread(arrays, specs)
        for wrap in (jax.jit, lambda f: f):
            found = wrap(ours)(*given), wrap(slopes(ours))(*given)
            check(found, expected)
            assert types(found[1]) == types(given)
            check(wrap(pushed(ours))(*given), jax.jit(pushed(plain))(*arrays))

    # what is mapped, and how it is sharded: over the batch, over the mapped axis, and weights, which have no batch
    for axes, specs in (
        ((0, None, None), (P(None, "b"), P("b"), P())),
        ((0, None, None), (P("b"), P(), P())),
        ((None, None, 0), (P(), P(), P("b"))),
    ):
        some = [x if axis is None else xs for x, xs, axis in zip(arrays, stacks, axes)]
        given, alone = spread(some, specs), list(map(jnp.asarray, some))
        check(jax.jit(jax.vmap(ours, axes))(*given), jax.jit(jax.vmap(plain, axes))(*alone))
        check(jax.vmap(pushed(ours), axes)(*given), jax.jit(jax.vmap(pushed(plain), axes))(*alone))
        check(jax.vmap(slopes(ours), axes)(*given), jax.jit(jax.vmap(slopes(plain), axes))(*alone))
        found = slopes(jax.vmap(ours, axes))(*given)
        check(found, jax.jit(slopes(jax.vmap(plain, axes)))(*alone))
        assert types(found) == types(given)
"""


def run(script: str) -> None:
    require("jax")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # to compile takes longer than to run
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_shard_map() -> None:
    run(SHARDED)


def test_explicit_axes() -> None:
    run(EXPLICIT)
