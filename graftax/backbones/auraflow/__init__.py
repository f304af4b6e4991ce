"""AuraFlow (fal, 2024): text-conditional flow transformers of latents, 0.2 and 0.3.

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
