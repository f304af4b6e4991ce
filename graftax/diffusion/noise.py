"""The one convention for the noise of images.

Image i of a seed has its own noise, which depends on the seed and on i alone: not on the batch that it is drawn in, nor on
devices, hosts and models (`image_keys`). On one machine and in batches of one size it is therefore drawn to the bit each
time; other batch sizes and processors add up in another order, which shows in the last digits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def image_keys(key: jax.Array, first: int, count: int) -> jax.Array:
    """Keys (count,) of the noise of images first .. first + count - 1 of one root key."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


def unit_noise(keys: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise (b, *shape) float32 for a step's `number`, of one key for each image (b,)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def initial_noise(keys: jax.Array, steps: int, shape: tuple[int, ...]) -> jax.Array:
    """The noise (b, *shape) float32 that sampling in `steps` steps starts from."""
    return unit_noise(keys, steps, shape)
