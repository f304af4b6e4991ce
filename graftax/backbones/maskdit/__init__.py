"""MaskDiT: a DiT that was trained on half of its tokens, with a narrow decoder behind its blocks (Zheng et al., arXiv
2306.09305).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.maskdit.backbone import BACKBONE, MaskDiT
    from graftax.backbones.maskdit.layouts import LAYOUTS
    from graftax.backbones.maskdit.variants import maskdit_spec, variant
    from graftax.backbones.maskdit.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "MaskDiT", "maskdit_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "MaskDiT": "backbone", "LAYOUTS": "layouts", "maskdit_spec": "variants", "variant": "variants",
    "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
