"""DDT: a condition encoder and the velocity decoder that it conditions token by token (Wang et al., arXiv 2504.05741).

Names are imported when they are first used: the list of published models (`zoo`) is read without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftax.lazy import attributes

if TYPE_CHECKING:
    from graftax.backbones.ddt.backbone import BACKBONE, DDT
    from graftax.backbones.ddt.layouts import LAYOUTS
    from graftax.backbones.ddt.variants import ddt_spec, variant
    from graftax.backbones.ddt.zoo import published

__all__ = ["BACKBONE", "DDT", "LAYOUTS", "ddt_spec", "published", "variant"]

_HOMES = {
    "BACKBONE": "backbone", "DDT": "backbone", "LAYOUTS": "layouts", "ddt_spec": "variants", "variant": "variants",
    "published": "zoo",
}  # fmt: skip

__getattr__ = attributes(__name__, _HOMES)
