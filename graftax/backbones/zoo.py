"""Published checkpoints of all families by name; read without JAX."""

from __future__ import annotations

import difflib

from graftax.backbones.auraflow import zoo as auraflow
from graftax.backbones.ddt import zoo as ddt
from graftax.backbones.dit import zoo as dit
from graftax.backbones.dit.relatives import zoo as relatives
from graftax.backbones.flux import zoo as flux
from graftax.backbones.lightningdit import zoo as lightningdit
from graftax.backbones.maskdit import zoo as maskdit
from graftax.backbones.pixart import zoo as pixart
from graftax.backbones.published import Published
from graftax.backbones.sd3 import zoo as sd3
from graftax.errors import BadInput
from graftax.spec import ModelSpec

FAMILIES = (dit.ZOO, relatives.ZOO, lightningdit.ZOO, ddt.ZOO, maskdit.ZOO, pixart.ZOO, sd3.ZOO, flux.ZOO, auraflow.ZOO)
ZOO: dict[str, Published] = {name: entry for family in FAMILIES for name, entry in family.items()}
"""Every published model by its name."""


def find(name: str) -> Published:
    """The published model of that name, its organisation in front or not. Raises `BadInput` naming the nearest ones."""
    if entry := next((entry for family in FAMILIES if (entry := family.published(name))), None):
        return entry
    near = [other for other in ZOO if name in other] or difflib.get_close_matches(name, ZOO, n=3, cutoff=0)
    raise BadInput(f"zoo: no model {name!r} among {len(ZOO)}; nearest are {', '.join(near[:3])}")


def names() -> list[str]:
    """All names that `spec_of` knows: published models and the families' variants."""
    return [name for family in FAMILIES for name in (*family, *family.variants)]


def spec_of(name: str) -> ModelSpec | None:
    """The spec of a published model ("PixArt-Sigma-XL-2-1024-MS") or of a family's variant ("DiT-B/4"), else None."""
    return next((spec for family in FAMILIES if (spec := family.spec_of(name)) is not None), None)
