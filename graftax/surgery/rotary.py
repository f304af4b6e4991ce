"""Rotary positions for a model that was trained without, as an edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from graftax.errors import BadInput
from graftax.ops import operator_class
from graftax.ops.base import KEPT, Params
from graftax.spec import ModelSpec, OpSpec, op
from graftax.surgery.edits import Edit
from graftax.surgery.replace import exchange, items_of, items_text, resolved
from graftax.surgery.select import Selector, Site, all_sites, select


@dataclass(frozen=True)
class Rotary(Edit):
    """See `rotary`.

    Attributes:
        sites: items of the selector.
    """

    sites: tuple[str | int, ...]
    name = "rotary"

    def on(self, spec: ModelSpec) -> ModelSpec:
        after = list(spec.blocks)
        for site, scion in self._scions(spec).items():
            after[site.block] = after[site.block].with_op(site.slot, scion)
        return spec.with_frame(rope=True).replace(blocks=tuple(after))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return exchange(spec, after, params, self._scions(spec), "transplant", None, jax.random.key(0))

    def effect(self, spec: ModelSpec) -> str:
        return KEPT

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items_text(self.sites),), {}

    def _scions(self, spec: ModelSpec) -> dict[Site, OpSpec]:
        if spec.option("rope"):
            raise BadInput(f"{self}: the model has rotary positions already; its mha become replace(.., mha_rope)")
        if readers := [site for site in all_sites(spec) if "rope" in operator_class(site.held(spec).kind).reads]:
            held = readers[0].held(spec)
            raise BadInput(f"{self}: {readers[0]} holds {held}, which would turn at once; expected mha_rope in its place")
        chosen = select(self.sites, spec, "mixer")
        if others := [site for site in chosen if site.held(spec) != op("mha")]:
            raise BadInput(f"{self}: {others[0]} holds {others[0].held(spec)}, expected mha")
        return {site: resolved(spec, site, op("mha_rope")) for site in chosen}


def rotary(selector: Selector = "blocks[mha].mixer") -> Rotary:
    """Give a DiT rotary positions (Su et al., arXiv 2104.09864; on the grid as in LightningDiT) that begin at strength 0.

    The frame gets the angles (`rope`), and every selected `mha` becomes an `mha_rope`, whose heads learn to how much of its
    angle a token turns: none at first, so that the function is kept to the bit. The table of positions stays. Raises
    `BadInput`, when it runs, on models that have rotary positions and on sites of other operators.
    """
    return Rotary(items_of(selector))
