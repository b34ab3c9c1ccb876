"""Learn to read handwritten digits at any tilt: a spatial transformer in front of a small classifier, in JAX.

The transformer is told nothing about the tilt. It learns to turn the digits, because that lowers the classifier's loss.

    python examples/jax_spatial_transformer.py --steps 1500
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import cudakit

Parameters = dict[str, jax.Array]
BATCH = 64
RATE = 0.003


def data(size: int) -> tuple[jax.Array, jax.Array]:
    """Return the digits as images (N, 1, size, size) from 0 to 1, and their labels."""
    digits = load_digits()
    small = jnp.asarray(digits.images[:, None] / 16, jnp.float32)
    return jax.image.resize(small, (len(small), 1, size, size), "linear"), jnp.asarray(digits.target)


def tilt(images: jax.Array, key: jax.Array) -> jax.Array:
    """Turn every image by an angle of its own, up to 60 degrees either way."""
    angle = jax.random.uniform(key, (len(images),), minval=-np.pi / 3, maxval=np.pi / 3)
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    theta = jnp.stack([cos, -sin, zero, sin, cos, zero], -1).reshape(-1, 2, 3)
    return cudakit.grid_sample(images, cudakit.affine_grid(theta, images.shape))


def initial(key: jax.Array, pixels: int) -> Parameters:
    """Draw the parameters; the transformer begins at the identity."""
    look, read, name = jax.random.split(key, 3)

    def draw(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
        return jax.random.normal(key, (inputs, outputs)) / np.sqrt(inputs)

    return {
        "look": draw(look, pixels, 32),
        "affine": jnp.zeros((32, 6)),
        "identity": jnp.eye(2, 3).ravel(),
        "read": draw(read, pixels, 64),
        "name": draw(name, 64, 10),
    }


def transformed(parameters: Parameters, images: jax.Array) -> jax.Array:
    """Turn the images as the localisation network finds useful."""
    seen = jnp.tanh(images.reshape(len(images), -1) @ parameters["look"])
    theta = (seen @ parameters["affine"] + parameters["identity"]).reshape(-1, 2, 3)
    return cudakit.grid_sample(images, cudakit.affine_grid(theta, images.shape))


def scores(parameters: Parameters, images: jax.Array) -> jax.Array:
    """Return the logarithms of the probabilities of the ten digits."""
    upright = transformed(parameters, images).reshape(len(images), -1)
    return jax.nn.log_softmax(jax.nn.relu(upright @ parameters["read"]) @ parameters["name"])


def loss(parameters: Parameters, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(scores(parameters, images), labels[:, None], 1).mean()


@jax.jit
def step(state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
    """Take one step of Adam on a batch of freshly tilted digits."""
    parameters, mean, square, count = state
    value, slopes = jax.value_and_grad(loss)(parameters, tilt(images, key), labels)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slopes)
    square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g**2, square, slopes)
    rate = RATE * jnp.sqrt(1 - 0.99**count) / (1 - 0.9**count)
    parameters = jax.tree.map(lambda p, m, s: p - rate * m / (jnp.sqrt(s) + 1e-8), parameters, mean, square)
    return (parameters, mean, square, count + 1), value


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print the losses, and return the accuracy on digits that were held back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="batches to train on (default: %(default)s)")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels (default: %(default)s)")
    args = parser.parse_args(arguments)

    images, labels = data(args.size)
    split = len(images) * 4 // 5
    key, first = jax.random.split(jax.random.key(0))
    parameters = initial(first, args.size**2)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zeros, zeros, 1)
    for number in range(args.steps):
        key, pick, turn = jax.random.split(key, 3)
        chosen = jax.random.choice(pick, split, (BATCH,))
        state, value = step(state, images[chosen], labels[chosen], turn)
        if number % max(args.steps // 10, 1) == 0:
            print(f"step {number:5d}  loss {value:.3f}")
    found = scores(state[0], tilt(images[split:], key)).argmax(1)
    accuracy = float((found == labels[split:]).mean())
    print(f"{accuracy:.1%} of {len(found)} new digits, tilted by up to 60 degrees, are read correctly")
    return accuracy


if __name__ == "__main__":
    main()
