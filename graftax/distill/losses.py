"""Regression losses of stage 1: scalars in float32, means over all elements of a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

LOSSES = ("l1", "l2", "huber")


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of |prediction - target|: two arrays of one shape -> () float32.

    The grafting paper's choice for token mixers (arXiv 2506.05340, Section 3).
    """
    return jnp.mean(jnp.abs(_error(prediction, target)))


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of (prediction - target)^2: two arrays of one shape -> () float32.

    The grafting paper's choice for MLPs (arXiv 2506.05340, Section 3).
    """
    return jnp.mean(jnp.square(_error(prediction, target)))


def huber(prediction: jax.Array, target: jax.Array, delta: float = 1.0) -> jax.Array:
    """Mean of e^2 / 2 where |e| <= delta and delta (|e| - delta / 2) beyond, e = prediction - target.

    Two arrays of one shape -> () float32; delta has the unit of the activations (Huber 1964; 1.0 in arXiv 2506.05340).
    """
    size = jnp.abs(_error(prediction, target))
    inside = jnp.minimum(size, delta)
    return jnp.mean(inside * (size - 0.5 * inside))  # both branches in one expression


def regression_loss(name: str, prediction: Any, target: Any, delta: float = 1.0) -> jax.Array:
    """The loss called `name`, one of `LOSSES`; `delta` matters to "huber" alone. Of dicts of streams: the streams' mean."""

    def one(prediction: jax.Array, target: jax.Array) -> jax.Array:
        return huber(prediction, target, delta) if name == "huber" else {"l1": l1, "l2": l2}[name](prediction, target)

    losses = jax.tree.leaves(jax.tree.map(one, prediction, target))
    return jnp.stack(losses).mean()


def _error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    return prediction.astype(jnp.float32) - target.astype(jnp.float32)
