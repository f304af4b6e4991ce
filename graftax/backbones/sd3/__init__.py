"""Stable Diffusion 3 and 3.5: text-to-image transformers of two streams (arXiv 2403.03206).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.sd3.backbone import BACKBONE, SD3
    from graftax.backbones.sd3.layouts import LAYOUTS
    from graftax.backbones.sd3.variants import sd3_spec, variant
    from graftax.backbones.sd3.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "SD3", "published", "sd3_spec", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "SD3": "backbone", "LAYOUTS": "layouts", "sd3_spec": "variants", "variant": "variants",
    "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
