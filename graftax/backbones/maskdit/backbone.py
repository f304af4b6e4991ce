"""The backbone of MaskDiT: DiT's, with a decoder before the final layer and no embedding of the null class.

It runs on all tokens, as the authors draw images, or on those that a mask leaves, as they train (`graftax.models.policy`).
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones.dit.backbone import OPTIONS, DiT
from graftax.backbones.dit.frame import LabelEmbed
from graftax.backbones.maskdit.decoder import Decoder, decoder_cost, decoder_of
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.blocks import Context, State
from graftax.errors import BadInput
from graftax.models.backbone import FrameCost
from graftax.ops.base import Params, call
from graftax.spec import ModelSpec, Option

DECODER = ("decoder_depth", "decoder_heads", "decoder_width")
OWN = ("num_heads", "decoder_heads")
"""Overrides that are no option of an operator."""


class MaskDiT(DiT):
    """The backbone: one image stream, conditioned on a noise level and a class."""

    fixed = ("pos_embed", "decoder/pos_embed")
    fills_in = True
    options = (*OPTIONS, *DECODER)

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a MaskDiT."""
        for name in DECODER:
            value = spec.option(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected a positive integer")
        width, heads = spec.option("decoder_width"), spec.option("decoder_heads")
        if width % heads:
            raise BadInput(f"ModelSpec.frame decoder_heads: {heads} does not divide decoder_width {width}")
        super().check(spec)

    def labels(self, spec: ModelSpec, name: str | None = None) -> LabelEmbed:
        return LabelEmbed(spec.classes, spec.width, null=False, name=name)

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        super().declare(module, spec)
        Decoder(decoder_of(spec), name="decoder")(jnp.zeros((1, spec.tokens, spec.width)), jnp.zeros((1, spec.width)))

    def head_width(self, spec: ModelSpec) -> int:
        return spec.option("decoder_width")

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, c): that of the network within EDM's preconditioner."""
        x = call(Decoder(decoder_of(spec), dtype), params["decoder"], state["img"], context.vec, context.kept)
        return super().head(spec, params, {"img": x}, context, dtype)

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        plain, (trained, fixed, flops) = super().cost(spec), decoder_cost(spec)
        return FrameCost(plain.trained + trained, plain.fixed + fixed, plain.embed, plain.head + flops)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` with what the user adds to a file: nothing that it does not say already."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        heads = spec.option("decoder_heads")
        if overrides.get("decoder_heads", heads) != heads:
            raise BadInput(f"override decoder_heads={overrides['decoder_heads']!r}: the file says {heads}")
        return spec


BACKBONE = MaskDiT()
