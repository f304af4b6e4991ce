"""VA-VAE's loss: latents of an autoencoder hold to the features of a vision model (Yao and Wang 2025, arXiv 2501.01423)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from graftax.nets import autoencoder
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.ops.base import Params
from graftax.spec_checks import check_count, check_number
from graftax.train.loop import Batch, Metrics
from graftax.train.recipes.alignment import normalised
from graftax.train.recipes.base import HEADS, init_head, run_head

MOST = 1e4
"""The balance of two gradients is not believed beyond this."""


def foundation_loss(
    latents: jax.Array, projected: jax.Array, features: jax.Array, margin: float, distance_margin: float
) -> jax.Array:
    """mean relu(1 - margin - cos(projected_i, features_i)), of every token, plus mean relu(|cos(latents_i, latents_j) -
    cos(features_i, features_j)| - distance_margin), of every pair of an image's tokens: () float32.

    latents (b, n, c), projected and features (b, n, d). Source: the paper's equations 4 and 6, without margins where they
    are 0.
    """
    one = jnp.sum(normalised(projected) * normalised(features), axis=-1)  # (b, n)
    pairs = [jnp.einsum("bic,bjc->bij", u, u) for u in (normalised(latents), normalised(features))]
    apart = jnp.maximum(jnp.abs(pairs[0] - pairs[1]) - distance_margin, 0)
    return jnp.mean(jnp.maximum(1 - margin - one, 0)) + jnp.mean(apart)


def balance(first: Params, second: Params) -> jax.Array:
    """|first| / |second| of two gradients, () without one of its own: what makes the second as strong as the first."""
    ratio = optax.tree.norm(first) / (optax.tree.norm(second) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, MOST))


@dataclass(frozen=True)
class Foundation:
    """How the small autoencoder is aligned. Raises `BadInput` on values that are none.

    Attributes:
        width: channels of the features.
        weight: of the loss, after both gradients were made equally strong at the encoder's last layer (0.5, then 0.1).
        margin: of single tokens, 0.5 at the end of the paper's training.
        distance_margin: of pairs of tokens, 0.25 at the end.
    """

    width: int
    weight: float = 0.5
    margin: float = 0.0
    distance_margin: float = 0.0

    def __post_init__(self) -> None:
        check_count(self.width, "foundation width")
        for name in ("weight", "margin", "distance_margin"):
            check_number(getattr(self, name), f"foundation {name}")

    def head(self, spec: AutoencoderSpec, key: jax.Array) -> Params:
        """{"heads": {"foundation": the linear map}} to stand beside the autoencoder's parameters."""
        return {HEADS: {"foundation": init_head(key, (spec.latent_channels, self.width))}}

    def loss(self, spec: AutoencoderSpec) -> Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]:
        """`autoencoder_loss` with this one beside it; batch: "image" too, and "features" (b, n, width) of its n latents."""

        def total(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            def both(last: Params) -> tuple[jax.Array, jax.Array, Metrics]:
                inner: Params = {**params, "encoder": {**params["encoder"], LAST: last}}
                raw, error, metrics = autoencoder.reconstructed(spec, inner, batch["image"], key)
                tokens: Any = raw.reshape(len(raw), -1, raw.shape[-1])  # (b, n, c)
                projected = run_head(params[HEADS]["foundation"], tokens)
                found = foundation_loss(tokens, projected, batch["features"], self.margin, self.distance_margin)
                return error, found, metrics

            last = params["encoder"][LAST]
            slopes = [jax.grad(lambda last, i=i: both(last)[i])(last)["kernel"] for i in range(2)]
            error, found, metrics = both(last)
            strength = balance(*({"kernel": slope} for slope in slopes))
            return error + self.weight * strength * found, {**metrics, "foundation": found, "balance": strength}

        return total


LAST = "Dense_0"
"""The encoder's last layer."""
