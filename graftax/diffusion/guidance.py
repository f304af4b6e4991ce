"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) in DiT's form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from graftax.errors import BadInput

ModelFn = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""x (b, h, w, c), t (b,) original timestep, conditions (a tree of arrays (b, ...)) -> (b, h, w, 2c): noise channels, then
variance; (b, h, w, c) of models without. Of a flow: t is the noise fraction, and the output (b, h, w, c) the velocity, noise
minus data (`graftax.models.prediction.as_called` turns networks to this)."""

GuidedFn = Callable[[jax.Array, jax.Array, Any, jax.Array], jax.Array]
"""A `ModelFn` that is also given the scale of guidance (), where that varies from step to step."""


@dataclass(frozen=True)
class Weaker:
    """A weaker twin of a model, from which its prediction is led away for a part of the time: skip-layer guidance, as
    diffusers' pipeline of Stable Diffusion 3 computes it.

    Attributes:
        model_fn: the twin, see `ModelFn`.
        scale: how far.
        first: the noisiest time at which it is looked at.
        last: the least noisy.
    """

    model_fn: ModelFn
    scale: float
    first: float | jax.Array
    last: float | jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, cond: Any, out: jax.Array) -> jax.Array:
        """What is added to the guided prediction: scale (out - twin), `out` (b, h, w, c) float32 being the model's own under
        the same conditions; zeros at other times, at which the twin does not run."""

        def away() -> jax.Array:
            return self.scale * (out - self.model_fn(x, t, cond).astype(jnp.float32))

        inside = (t[0] <= self.first) & (t[0] >= self.last)
        return jax.lax.cond(inside, away, lambda: jnp.zeros_like(out))


def guided(
    model_fn: ModelFn, scale: float, null: Callable[[Any], Any], channels: int | None = 3, weaker: Weaker | None = None,
    weak: ModelFn | None = None, varies: bool = False,
) -> Any:  # fmt: skip
    """Wrap a model so that its prediction is pushed away from the unconditional one.

    eps = eps(null) + scale * (eps(cond) - eps(null)) on the first `channels` noise channels (of a flow: velocities); the
    other noise channels and all variance channels are those of the conditional pass. DiT guides 3 of its 4 latent
    channels, hence the default; None guides all, and so does a number above what the model has.

    Both passes run as one batch of 2b, each image followed by its null pass, and see the same x, so one trajectory is
    enough: DiT's doubled batch keeps this very half. At scale 1 guidance changes nothing and `model_fn` itself is returned.
    With a `weak` model that one's prediction under the same conditions takes the place of the unconditional (autoguidance).

    model_fn: see `ModelFn`; scale: a Python number; null: from conditions to their unconditional twin; weaker: what the
    guided channels are led away from as well; varies: what is returned takes the scale as its fourth argument, and where
    that is 1 runs the conditional pass alone. Returns a `ModelFn` on (b, ...), float32, or such a `GuidedFn`. Raises
    BadInput if `scale` is negative or `channels` below 1.
    """
    check_guidance(scale, channels)
    if scale == 1:
        return model_fn

    def both(x: jax.Array, t: jax.Array, cond: Any) -> tuple[jax.Array, jax.Array]:
        """The conditional output, and what it is led away from."""
        if weak is not None:
            return model_fn(x, t, cond).astype(jnp.float32), weak(x, t, cond).astype(jnp.float32)
        out = model_fn(pairs(x, x), pairs(t, t), jax.tree.map(pairs, cond, null(cond)))  # (2b, h, w, 2c)
        out = out.astype(jnp.float32).reshape(len(x), 2, *out.shape[1:])
        return out[:, 0], out[:, 1]  # (b, h, w, 2c)

    def call(x: jax.Array, t: jax.Array, cond: Any, scale: float | jax.Array = scale) -> jax.Array:
        conditional, reference = both(x, t, cond)
        c = x.shape[-1]
        k = c if channels is None else min(channels, c)
        eps = reference[..., :k] + scale * (conditional[..., :k] - reference[..., :k])
        if weaker is not None:
            eps += weaker(x, t, cond, conditional)[..., :k]
        return jnp.concatenate([eps, conditional[..., k:]], axis=-1)  # (b, h, w, 2c)

    def varying(x: jax.Array, t: jax.Array, cond: Any, scale: jax.Array) -> jax.Array:
        alone = lambda x, t, cond, scale: model_fn(x, t, cond).astype(jnp.float32)  # noqa: E731
        return jax.lax.cond(scale == 1, alone, call, x, t, cond, scale)

    return varying if varies else call


def check_guidance(scale: float, channels: int | None) -> None:
    """Raise BadInput if `scale` is negative or not finite, or `channels` below 1."""
    if not (scale >= 0 and math.isfinite(scale)):
        raise BadInput(f"guidance scale: {scale}, expected 0 or more, finite (1 is no guidance)")
    if channels is not None and channels < 1:
        raise BadInput(f"guided channels: {channels}, expected 1 or more, or None for all")


def pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """Two arrays (b, ...) in turns, (2b, ...): split over devices, each keeps its own images; one after the other, half of
    them would be sent across at every step."""
    return jnp.stack([first, second], axis=1).reshape(2 * len(first), *first.shape[1:])
