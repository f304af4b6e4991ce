"""Flux: rectified-flow transformers of latents in two streams (FLUX.1, Black Forest Labs, 2024).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
