"""Models of two stages, as DDT: an encoder makes what the others are conditioned on, so that it may be kept for some steps.

The encoder is what works on the stream "cond" alone; the decoder's blocks read it (`BlockKind.under`). What it makes moves
slowly along the way from noise to data, and holds time and class, which the decoder does not see again: with kept conditions
only the decoder runs (arXiv 2504.05741, Section 3.4).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.blocks import block_kind
from graftax.errors import BadInput
from graftax.models.backbone import Cond, find
from graftax.models.forward import embed, prepare_params
from graftax.models.sizes import at_size
from graftax.models.stack import run_stack
from graftax.ops.base import Params
from graftax.spec import ModelSpec


class Stages(NamedTuple):
    """A model of two stages.

    Attributes:
        encoder: its spec with the encoder's steps alone.
        decoder: with the others alone.
    """

    encoder: ModelSpec
    decoder: ModelSpec

    def prepare(self, params: Params, plan: str = "auto") -> tuple[Params, Params]:
        """The weights of either stage, as `encode` and `decode` take them."""
        return prepare_params(self.encoder, params, plan), prepare_params(self.decoder, params, plan)

    def encode(self, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None = None) -> jax.Array:
        """What conditions the decoder, (b, n, d) float32: inputs as `graftax.models.forward` takes them."""
        spec = at_size(self.encoder, x)
        state, context = embed(spec, prepared, x, t, cond, dtype)
        state, _ = run_stack(spec, prepared["blocks"], state, context, dtype=dtype)
        reader = self.decoder.blocks[self.decoder.program[0].blocks[0]].kind
        return block_kind(reader).under(state, context).vec

    def decode(self, prepared: Params, x: jax.Array, kept: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
        """The output (b, h, w, c) for images x (b, h, w, c) under what `encode` gave for them, now or some steps ago."""
        spec = at_size(self.decoder, x)
        cond = find(spec).example(spec, len(x))  # neither time nor class enters
        state, context = embed(spec, prepared, x, jnp.zeros(len(x)), cond, dtype)
        context = dataclasses.replace(context, time=None)
        state, _ = run_stack(spec, prepared["blocks"], {**state, "cond": kept}, context, dtype=dtype)
        return find(spec).head(spec, prepared, state, context, dtype)


def stages(spec: ModelSpec) -> Stages:
    """The two stages of a model. Raises `BadInput` where its program does not run an encoder, then a decoder."""
    encoding = [{_encodes(spec, block) for block in step.blocks} for step in spec.program]
    count = sum(kinds == {True} for kinds in encoding)
    if not 0 < count < len(encoding) or encoding != [{True}] * count + [{False}] * (len(encoding) - count):
        raise BadInput(f"two stages: a {spec.backbone} of {len(encoding)} steps, expected an encoder's, then a decoder's")
    return Stages(spec.replace(program=spec.program[:count]), spec.replace(program=spec.program[count:]))


def _encodes(spec: ModelSpec, block: int) -> bool:
    return {stream for slot in block_kind(spec.blocks[block].kind).slots for stream in slot.streams} == {"cond"}
