"""DiT: class-conditional diffusion transformers of latents (Peebles and Xie, arXiv 2212.09748)."""

from graftax.backbones.dit.backbone import DiT
from graftax.backbones.dit.layouts import LAYOUTS
from graftax.backbones.dit.variants import dit_spec, variant, with_compat

BACKBONE = DiT()

__all__ = ["BACKBONE", "LAYOUTS", "DiT", "dit_spec", "variant", "with_compat"]
