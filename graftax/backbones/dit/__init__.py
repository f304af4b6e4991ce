"""DiT: class-conditional diffusion transformers of latents (Peebles and Xie, arXiv 2212.09748).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.dit.backbone import BACKBONE, DiT
    from graftax.backbones.dit.joint import joined, parted
    from graftax.backbones.dit.relatives.layouts import LAYOUTS
    from graftax.backbones.dit.relatives.zoo import published
    from graftax.backbones.dit.variants import dit_spec, variant, with_compat

__all__ = ["BACKBONE", "LAYOUTS", "DiT", "dit_spec", "joined", "parted", "published", "variant", "with_compat"]

_HOMES = {
    "BACKBONE": "backbone", "DiT": "backbone", "LAYOUTS": "relatives.layouts", "dit_spec": "variants", "variant": "variants",
    "with_compat": "variants", "published": "relatives.zoo", "joined": "joint", "parted": "joint",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
