"""AuraFlow (fal, 2024): text-conditional flow transformers of latents, 0.2 and 0.3.

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.auraflow.backbone import BACKBONE, AuraFlow
    from graftax.backbones.auraflow.layouts import LAYOUTS
    from graftax.backbones.auraflow.variants import auraflow_spec, variant
    from graftax.backbones.auraflow.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "AuraFlow", "auraflow_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "AuraFlow": "backbone", "LAYOUTS": "layouts", "auraflow_spec": "variants",
    "variant": "variants", "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
