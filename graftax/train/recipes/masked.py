"""Training on a part of the tokens: what is seen is denoised, what is masked is reconstructed.

Source: MaskDiT (Zheng et al. 2023, arXiv 2306.09305) and its code: the reconstruction's targets are patches of
the noisy image at mean 0 and variance 1, their variance unbiased, and what is held to them is the denoised image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.diffusion import Noising, Objective
from graftax.models.policy import Mask
from graftax.models.routing import patches, pick, places_of

PART = "reconstruction"
"""What records call the error on masked patches."""


def masked_losses(
    process: Noising, mask: Mask, kept: jax.Array, side: int, out: jax.Array, x0: jax.Array, t: jax.Array,
    noise: jax.Array, objective: Objective,
) -> dict[str, jax.Array]:  # fmt: skip
    """`training_losses` of the patches that blocks saw, plus `mask.weight` times the error on the others, PART.

    out, x0, noise (b, h, w, c), t (b,) as for `training_losses`, whole; kept (b, k): the patches of `side` by `side` that
    were seen. Each loss is (b,), a mean over numbers of its patches.
    """
    places = places_of(kept, out.shape[1] * out.shape[2] // side**2)
    parts = (pick(patches(array, side), places) for array in (out, x0, noise))  # (b, k, p p c)
    seen, clean, noises = (part.reshape(*kept.shape, -1, x0.shape[-1]) for part in parts)  # as images (b, k, p p, c)
    losses = process.training_losses(seen, clean, t, noises, objective)
    found = reconstruction(out, process.q_sample(x0, t, noise), ~places[2], side)
    return {**losses, PART: found, "loss": losses["loss"] + mask.weight * found}


def reconstruction(out: jax.Array, x: jax.Array, masked: jax.Array, side: int) -> jax.Array:
    """(b,) float32: mean squared error of the patches of `out` where `masked` (b, n) against those of x, normalised; both
    images are (b, h, w, c)."""
    found, target = (patches(array.astype(jnp.float32), side) for array in (out, x))  # (b, n, p p c)
    mean, variance = jnp.mean(target, -1, keepdims=True), jnp.var(target, -1, ddof=1, keepdims=True)
    error = jnp.mean((found - (target - mean) * jax.lax.rsqrt(variance + 1e-6)) ** 2, -1)
    return jnp.mean(error, axis=1, where=masked)
