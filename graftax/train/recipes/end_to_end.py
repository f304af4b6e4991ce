"""Tokenizer and diffusion model trained together, in one step: REPA-E (Leng et al. 2025, arXiv 2504.10483).

The model sees the tokenizer's latents through a batch normalisation without scale and shift. Three gradients are stopped:
the model's at the latents, so that the denoising error never reaches the tokenizer, which would make latents that are easy
to denoise and say nothing; the tokenizer's at the model and its heads, through which alone REPA's alignment reaches it; and
that of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.nets import autoencoder, vae
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.nets.vae import VAESpec
from graftax.ops.base import Params
from graftax.train.diffusion_task import DiffusionLoss
from graftax.train.loop import Batch, Metrics
from graftax.train.recipes.base import TOKENIZER

EPS = 1e-4
"""Of the batch normalisation, as the reference's."""
DIFFUSION, TOKENS = range(2)  # streams of a step's key

Tokenizer = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Metrics]]
"""(params, images (b, h, w, c) in [-1, 1], key) -> raw latents, its own loss (), metrics."""


@dataclass(frozen=True, eq=False)
class EndToEnd:
    """`loss_fn(params, batch, key)` of both, for `graftax.train.train_job`.

    `params`: a training's tree of the model (`training_tree`) with the tokenizer's beside it, as "tokenizer"; batch: "image"
    the pixels, and what the model is conditioned on and its recipe takes. The loss is the tokenizer's own, plus `align`
    times the alignment of a model that stands still, plus the model's loss on latents that stand still, at the same times
    and noise. Raises `BadInput` where the recipe aligns nothing. Pieces of a batch are each normalised by themselves.

    Attributes:
        diffusion: of the model; its recipe has a `repa`.
        tokenizer: what encodes, and judges itself (`small_tokenizer`, `vae_tokenizer`).
        align: weight of the alignment for the tokenizer, 1.5 in the reference.
    """

    diffusion: DiffusionLoss
    tokenizer: Tokenizer
    align: float = 1.5

    def __post_init__(self) -> None:
        if not self._aligned():
            raise BadInput(f"end to end: recipe {str(self.diffusion.recipe)!r}, expected a repa(..) for the tokenizer")

    @property
    def sees_run(self) -> bool:
        """As of the model's loss."""
        return self.diffusion.sees_run

    def __call__(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        own = {name: part for name, part in params.items() if name != TOKENIZER}
        raw, error, metrics = self.tokenizer(params[TOKENIZER], batch["image"], jax.random.fold_in(key, TOKENS))
        latents = normalised(raw)
        drawn = self.diffusion.draw({**batch, "image": jax.lax.stop_gradient(latents)}, jax.random.fold_in(key, DIFFUSION))
        _, through = self.diffusion.given(jax.lax.stop_gradient(own), {**drawn, "image": latents})
        loss, found = self.diffusion.given(own, drawn)
        total = error + self.align * sum(through[name] for name in self._aligned()) + loss
        return total, {**found, **{f"tokenizer_{name}": value for name, value in metrics.items()}}

    def _aligned(self) -> list[str]:
        recipe = self.diffusion.recipe
        return [name for name, loss in zip(recipe.names, recipe.losses, strict=True) if loss.name == "repa"]


def normalised(raw: jax.Array) -> jax.Array:
    """Latents (b, h, w, c) with mean 0 and variance 1 of every channel over the batch, that of all devices."""
    mean, variance = raw.mean((0, 1, 2)), raw.var((0, 1, 2))
    return (raw - mean) * jax.lax.rsqrt(variance + EPS)


def statistics(encode: Callable[[jax.Array], jax.Array], batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (c,) of raw latents over batches of images, in place of a batch's: the model's latents are then
    (raw - mean) / deviation, and what it draws is decoded after the way back. Raises `BadInput` without images."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for images in batches:
        raw = np.asarray(encode(images), np.float64)  # (b, h, w, c)
        raw = raw.reshape(-1, raw.shape[-1])
        count, total, squares = count + len(raw), total + raw.sum(0), squares + (raw**2).sum(0)
    if not count:
        raise BadInput("latent statistics: no images, expected some")
    mean = total / count
    return mean.astype(np.float32), np.sqrt(squares / count - mean**2 + EPS).astype(np.float32)


def small_tokenizer(spec: AutoencoderSpec) -> Tokenizer:
    """The small autoencoder, with its own loss."""
    return lambda params, images, key: autoencoder.reconstructed(spec, params, images, key)


def vae_tokenizer(
    spec: VAESpec, kl: float = 1e-6, perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None
) -> Tokenizer:
    """Stable Diffusion's autoencoder: mean absolute error of the images, `kl` times the divergence from unit noise, summed
    over an image's latents, and `perceptual`(decoded, images) () if given: LPIPS, a discriminator's word."""

    def run(params: Params, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        moments = vae.encode_moments(spec, params, images)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        latents = vae.sample_latents(spec, moments, key)
        decoded = vae.decode(spec, params, latents)
        l1 = jnp.abs(decoded - images).mean()
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3)).mean()
        more = {} if perceptual is None else {"perceptual": perceptual(decoded, images)}
        return latents, l1 + kl * divergence + sum(more.values()), {"l1": l1, "kl": divergence, **more}

    return run
