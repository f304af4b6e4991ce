"""What surrounds the blocks of a Flux: the conditioning vector and the places of tokens.

The semantics are those of the authors' code (black-forest-labs/flux, `model.py`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from graftax.backbones.embedders import TimestepEmbed, VectorEmbed
from graftax.errors import BadInput
from graftax.models.backbone import Cond
from graftax.ops.base import Params, call
from graftax.ops.rope import Rope, angles, tables
from graftax.spec import ModelSpec, Sizes

SCALE = 1000.0
"""What times and guidances are multiplied by before their sinusoids."""

THETA = 10_000.0
"""Base of the rotary frequencies."""


def default_axes(head_dim: int) -> tuple[int, int, int]:
    """Rotary channels of a head for a token's index, row and column, in Flux's proportions: 128 -> (16, 56, 56)."""
    side = 2 * (7 * head_dim // 32)
    return head_dim - 2 * side, side, side


def axes_of(spec: ModelSpec) -> tuple[int, ...]:
    """The rotary channels that a spec says, as numbers."""
    return tuple(int(part) for part in spec.option("rope_axes").split(","))


def axes_text(value: object, sizes: Sizes) -> str:
    """Rotary axes (16, 56, 56), or as text, in the form in which a spec holds them: "16,56,56".

    Raises `BadInput` where these are no three even numbers that make up a head.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        axes = tuple(int(str(part)) for part in parts)  # pyright: ignore[reportGeneralTypeIssues]
        angles(np.zeros((1, 3)), axes)
    except (TypeError, ValueError):
        axes = ()
    if sum(axes) != sizes.head_dim:
        raise BadInput(
            f"rope_axes: got {value!r}, expected three even numbers that add up to {sizes.head_dim}, as (16, 56, 56)"
        )
    return ",".join(map(str, axes))


def rope(spec: ModelSpec, words: int) -> Rope:
    """Rotary tables of `words` tokens of text, which stay as they are, then of the image's grid, at (0, row, column)."""
    rows, columns = spec.sizes.grid
    image = np.stack([np.zeros(rows * columns), *np.indices((rows, columns)).reshape(2, -1)], axis=1)  # (n, 3)
    return tables(np.concatenate([np.zeros((words, 3)), image]), axes_of(spec), THETA)


def needed(spec: ModelSpec) -> list[str]:
    """Names of the conditions that a model takes."""
    has = {"text": True, "pooled": spec.option("pooled_width"), "guidance": spec.option("guidance")}
    return [name for name, there in has.items() if there]


def declare_vec(module: nn.Module, spec: ModelSpec) -> None:
    """Create the parameters that `vec_of` reads inside `module`."""
    TimestepEmbed(spec.width, name="t_embedder")(jnp.zeros(1))
    if spec.option("guidance"):
        TimestepEmbed(spec.width, name="guidance_embedder")(jnp.zeros(1))
    if width := spec.option("pooled_width"):
        VectorEmbed(spec.width, name="pooled_embedder")(jnp.zeros((1, width)))


def vec_of(spec: ModelSpec, params: Params, t: jax.Array, cond: Cond) -> jax.Array:
    """The conditioning vector (b, d): embeddings of t (b,) in 0..1, guidance (b,) and the pooled text (b, c), those
    that the model has, added. Raises `BadInput` where one is missing, as in a batch of training data.
    """
    if missing := [name for name in needed(spec) if name not in cond and name != "text"]:
        raise BadInput(f"conditions: got {sorted(cond)}, expected {missing[0]} too, which this model is conditioned on")
    vec = call(TimestepEmbed(spec.width), params["t_embedder"], SCALE * t.astype(jnp.float32))
    if spec.option("guidance"):
        guidance = SCALE * cond["guidance"].astype(jnp.float32)
        vec += call(TimestepEmbed(spec.width), params["guidance_embedder"], guidance)
    if spec.option("pooled_width"):
        vec += call(VectorEmbed(spec.width), params["pooled_embedder"], cond["pooled"])
    return vec
