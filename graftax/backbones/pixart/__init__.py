"""PixArt: text-conditional diffusion transformers of latents (PixArt-alpha, arXiv 2310.00426; PixArt-Sigma, 2403.04692).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

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

__getattr__ = attributes(__name__, _HOMES)
