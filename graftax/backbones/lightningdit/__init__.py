"""LightningDiT: DiT with the parts of language models, on latents of VA-VAE (Yao et al., arXiv 2501.01423).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.lightningdit.backbone import BACKBONE, LightningDiT
    from graftax.backbones.lightningdit.layouts import LAYOUTS
    from graftax.backbones.lightningdit.variants import lightningdit_spec, variant
    from graftax.backbones.lightningdit.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "LightningDiT", "lightningdit_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "LightningDiT": "backbone", "LAYOUTS": "layouts", "lightningdit_spec": "variants",
    "variant": "variants", "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
