"""The backbone of LightningDiTs: a DiT's, whose frame has what they add as options; here is how their authors draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftax.backbones.dit.backbone import DiT
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.errors import BadInput
from graftax.spec import ModelSpec, Option

OWN = ("num_heads", "rope")
"""Overrides that are no option of an operator."""


class LightningDiT(DiT):
    """The backbone: `DiT`'s, with rotary positions beside its table and an RMSNorm before the output, where a model has
    them."""

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """As the authors draw after 800 epochs: Euler over 250 points, data fractions shifted by 0.3, guidance 6.7 on the
        first 3 channels from a data fraction of 0.125 on."""
        guidance = {"cfg_scale": 6.7, "cfg_channels": 3, "interval": (0.0, 0.875 / 0.125)}
        return {"sampler": "euler", "steps": 249, "shift": 1 / 0.3, **guidance}

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec`: its file says all by now. Raises `BadInput` on what is unknown or contradicts it."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        if overrides.get("rope", spec.option("rope")) != spec.option("rope"):
            raise BadInput(f"override rope={overrides['rope']!r}: the file says {spec.option('rope')}")
        return spec


BACKBONE = LightningDiT()
