"""What surrounds the blocks of an SD3: a table of positions larger than any image, the vector of time and pooled text, the
text's way in (arXiv 2403.03206, Section 4 and Figure 2a)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.backbones.embedders import FREQUENCIES, TimestepEmbed, VectorEmbed, cropped, placed_sinusoids
from graftax.models.backbone import Cond
from graftax.ops.base import Params, call
from graftax.spec import ModelSpec


def declare(module: nn.Module, spec: ModelSpec) -> None:
    """Create the parameters that the functions below read inside `module`."""
    module.param("pos_embed", lambda _: fresh_table(spec))
    TimestepEmbed(spec.width, name="t_embedder")(jnp.zeros(1))
    VectorEmbed(spec.width, name="pooled_embedder")(jnp.zeros((1, spec.option("pooled_width"))))
    text_projection(spec, name="text_embedder")(jnp.zeros((1, 1, spec.option("text_width"))))


def fresh_table(spec: ModelSpec) -> jax.Array:
    """The table (1, side^2, d) of a model that begins: sines and cosines, the model's own image stretched over all of it."""
    side = spec.option("positions")
    rows, columns = (np.arange(side, dtype=np.float32) * (tokens / side) for tokens in spec.sizes.grid)
    return placed_sinusoids(rows, columns, spec.width)


def positions_of(spec: ModelSpec, params: Params) -> jax.Array:
    """Positions (1, n, d) of the tokens on the spec's grid: the middle of the table, as it was stored."""
    side, (rows, columns) = spec.option("positions"), spec.sizes.grid
    corner = (side - rows) // 2, (side - columns) // 2
    return cropped(jnp.asarray(params["pos_embed"]), corner, spec.sizes.grid)


def vec_of(spec: ModelSpec, params: Params, t: jax.Array, pooled: jax.Array) -> jax.Array:
    """The conditioning vector (b, d): the embeddings of t (b,) and of the pooled text (b, p), added."""
    time = call(TimestepEmbed(spec.width), params["t_embedder"], t)
    return time + call(VectorEmbed(spec.width), params["pooled_embedder"], pooled)


def text_of(spec: ModelSpec, params: Params, cond: Cond, dtype: DTypeLike | None) -> jax.Array:
    """The text stream (b, m, d) float32 of embeddings (b, m, c)."""
    return call(text_projection(spec, dtype), params["text_embedder"], cond["text"]).astype(jnp.float32)


def text_projection(spec: ModelSpec, dtype: DTypeLike | None = None, name: str | None = None) -> nn.Dense:
    """(b, m, c) -> (b, m, d)."""
    return nn.Dense(spec.width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


def cost(spec: ModelSpec) -> tuple[int, int]:
    """Parameters of all here but the table, and FLOPs for one time and one text."""
    d, text, pooled = spec.width, spec.option("text_width"), spec.option("pooled_width")
    params = sum(c * d + d for c in (FREQUENCIES, d, pooled, d, text))
    return params, 2 * d * (FREQUENCIES + d + pooled + d) + 2 * spec.sizes.text * text * d
