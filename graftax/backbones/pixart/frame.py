"""What surrounds the blocks of a PixArt: where its text comes from, and the embedding of image sizes.

PixArt-alpha (Chen et al., arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692); patches, times and positions are DiT's.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones import words
from graftax.backbones.embedders import FREQUENCIES, TimestepEmbed
from graftax.models.backbone import Cond
from graftax.ops.base import Params, call
from graftax.ops.mlp import gelu
from graftax.spec import ModelSpec

MICRO = {"resolution": 2, "aspect_ratio": 1}
"""Conditions on the original image's size, and how many numbers each has: height and width in pixels, height / width."""

PARTS = sum(MICRO.values())
"""Parts that the conditioning vector is cut into, one for each of these numbers."""


class CaptionProjection(nn.Module):
    """Embeddings of a text encoder (b, m, c) -> (b, m, d): Linear, GELU in its tanh form, Linear.

    Attributes:
        width: d.
        dtype: matmul type.
    """

    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = gelu(nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="fc1")(text))
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="fc2")(x)


def declare_text(module: nn.Module, spec: ModelSpec) -> None:
    """Create the parameters that `text_of` and `null_text` read inside `module`."""
    width = spec.option("text_width")
    if words.reads_words(spec):
        words.declare(module, spec)
    CaptionProjection(spec.width, name="caption")(jnp.zeros((1, 1, width)))
    if count := spec.option("null_tokens"):
        module.param("null_caption", nn.initializers.normal(width**-0.5), (count, width), jnp.float32)


def text_of(spec: ModelSpec, params: Params, cond: Cond, dtype: DTypeLike | None) -> tuple[jax.Array, jax.Array | None]:
    """The text (b, m, d) that blocks look at, and which of its tokens are real (b, m), None for all: of the conditions
    `text` (b, m, c) and, where given, `text_mask` (b, m), or of words `text` (b, m)."""
    text, mask = cond["text"], cond.get("text_mask")
    if words.reads_words(spec):
        text, mask = words.embedded(spec, params, text)
    return call(CaptionProjection(spec.width, dtype), params["caption"], text), None if mask is None else mask.astype(bool)


def text_cost(spec: ModelSpec) -> tuple[int, int]:
    """Parameters of the text's way into the model, and FLOPs for one text of `sizes.context` tokens."""
    d, c = spec.width, spec.option("text_width")
    params, flops = words.cost(spec) if words.reads_words(spec) else (0, 0)
    return params + c * d + d + d * d + d, flops + 2 * spec.sizes.context * d * (c + d)


class SizeEmbed(nn.Module):
    """Numbers of an image's size (b, k) -> (b, k d / 3): each goes through a `TimestepEmbed` of width d / 3.

    Attributes:
        width: d.
    """

    width: int

    @nn.compact
    def __call__(self, numbers: jax.Array) -> jax.Array:
        embed = TimestepEmbed(self.width // PARTS)
        nn.share_scope(self, embed)
        return embed(numbers.reshape(-1)).reshape(len(numbers), -1)


def size_params(width: int) -> int:
    """Parameters of one `SizeEmbed`."""
    part = width // PARTS
    return FREQUENCIES * part + part + part * part + part
