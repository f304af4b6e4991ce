"""What is DiT's own around the blocks: classes, and whose numerics.

The frame's option `compat` "diffusers" computes as Hugging Face diffusers' DiTTransformer2DModel (0.42), which deviates in
the timestep's frequencies (`timestep_features`); its other deviation, eps 1e-5 in the norm before the channel mixer, is an
option of that norm.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.spec import ModelSpec

COMPAT = ("dit", "diffusers")


def compat_of(spec: ModelSpec) -> str:
    """Whose numerics: "dit" or "diffusers"."""
    return spec.option("compat", "dit")


class LabelEmbed(nn.Module):
    """y (b,) int -> (b, d). Row `classes` is the null class of classifier-free guidance.

    Attributes:
        classes: without the null class.
        width: d.
    """

    classes: int
    width: int

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(0.02), (self.classes + 1, self.width), jnp.float32)
        return jnp.take(table, y, axis=0)
