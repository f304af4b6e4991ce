"""PixArt: text-conditional diffusion transformers of latents (PixArt-alpha, arXiv 2310.00426; PixArt-Sigma, 2403.04692).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftax.backbones.pixart.backbone import BACKBONE, PixArt
    from graftax.backbones.pixart.layouts import LAYOUTS
    from graftax.backbones.pixart.variants import pixart_spec, variant
    from graftax.backbones.pixart.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "PixArt", "pixart_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "PixArt": "backbone", "LAYOUTS": "layouts", "pixart_spec": "variants", "variant": "variants",
    "published": "zoo",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
