"""Flux: rectified-flow transformers of latents in two streams (FLUX.1, Black Forest Labs, 2024).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.flux.backbone import BACKBONE, Flux
    from graftax.backbones.flux.layouts import LAYOUTS
    from graftax.backbones.flux.variants import flux_spec, variant
    from graftax.backbones.flux.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "Flux", "flux_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "Flux": "backbone", "LAYOUTS": "layouts", "flux_spec": "variants", "variant": "variants",
    "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
