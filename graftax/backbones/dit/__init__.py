"""DiT: class-conditional diffusion transformers of latents (Peebles and Xie, arXiv 2212.09748).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftax.backbones.dit.backbone import BACKBONE, DiT
    from graftax.backbones.dit.layouts import LAYOUTS
    from graftax.backbones.dit.variants import dit_spec, variant, with_compat
    from graftax.backbones.dit.zoo import published

__all__ = ["BACKBONE", "LAYOUTS", "DiT", "dit_spec", "published", "variant", "with_compat"]

_HOMES = {
    "BACKBONE": "backbone", "DiT": "backbone", "LAYOUTS": "layouts", "dit_spec": "variants", "variant": "variants",
    "with_compat": "variants", "published": "zoo",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
