"""Where the norms of a block stand, as an edit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax

from graftax import blocks
from graftax.blocks.dit_norms import BRANCHES, DiTNorms
from graftax.errors import BadInput, did_you_mean
from graftax.ops.base import CHANGED, KEPT, Params
from graftax.ops.norms_soft import NORMS
from graftax.spec import BlockSpec, ModelSpec, OpSpec, op
from graftax.surgery.edits import Edit
from graftax.surgery.replace import exchange, items_of, items_text
from graftax.surgery.report import Report
from graftax.surgery.select import Selector, Site, select

PLACEMENTS = {"pre": ("", ""), "sandwich": ("", "out"), "residual_post": ("gone", "out"), "post": ("gone", "post")}
"""Placement -> what becomes of the norm before a branch, and where another one comes."""

NONE = op("no_norm")
FROM = ("dit", DiTNorms.kind)
"""Kinds of blocks whose norms can be placed."""


@dataclass(frozen=True, kw_only=True)
class PlaceNorms(Edit):
    """See `place_norms`.

    Attributes:
        sites: items of the selector, of any slots of the blocks.
        placement: one of `PLACEMENTS`.
        norm: kind of the norm that comes in.
        soft: whether norms come and go by a learned strength.
    """

    sites: tuple[str | int, ...]
    placement: str
    norm: str
    soft: bool
    name = "place_norms"

    def on(self, spec: ModelSpec) -> ModelSpec:
        after = list(spec.blocks)
        for i in self._blocks(spec):
            held = {slot: self._scion(slot, old) for slot, old in _opened(spec.blocks[i]).ops}
            after[i] = blocks.resolve(DiTNorms.kind, spec.sizes, held)
        return spec.replace(blocks=tuple(after))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        chosen = self._blocks(spec)
        opened = [_opened(block) if i in chosen else block for i, block in enumerate(spec.blocks)]
        before = spec.replace(blocks=tuple(opened))
        changed = {Site(i, slot): new for i in chosen for slot, new in after.blocks[i].ops if new != before.blocks[i][slot]}
        return exchange(before, after, params, changed, "transplant", None, jax.random.key(0))

    def effect(self, spec: ModelSpec) -> str:
        kept = (self.soft or self.placement == "pre") and all(spec.blocks[i].kind == "dit" for i in self._blocks(spec))
        return KEPT if kept else CHANGED

    def scions(self, spec: ModelSpec, report: Report, held: Iterable[Site]) -> set[Site]:
        return report.moved(held)  # what comes in stands where nothing was that it could learn from

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items_text(self.sites), self.placement), {"norm": self.norm, "soft": self.soft}

    def _blocks(self, spec: ModelSpec) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(site.block for site in select(self.sites, spec)))
        if others := [i for i in found if spec.blocks[i].kind not in FROM]:
            raise BadInput(
                f"{self}: block {others[0]} is of the kind {spec.blocks[others[0]].kind!r}, expected one of {FROM}"
            )
        return found

    def _scion(self, slot: str, old: OpSpec) -> OpSpec:
        """What a slot of a block that is open for norms everywhere holds afterwards."""
        before, where = PLACEMENTS[self.placement]
        norm, _, place = slot.partition("_")
        if norm not in BRANCHES:
            return old
        if place:
            return (op("soft_norm", norm=self.norm) if self.soft else NORMS[self.norm][2]) if place == where else NONE
        if not before:
            return old
        return op("soft_norm", norm=_kind_of(old), eps=old.option("eps")) if self.soft and old != NONE else NONE


def place_norms(selector: Selector, placement: str, norm: str = "rms", soft: bool = True) -> PlaceNorms:
    """Put the norms of the selected blocks of a DiT elsewhere: `place_norms("blocks[*].norm", "sandwich")`.

    "pre" is DiT: norms before the branches. "sandwich" adds one of the kind `norm`, "rms" or "layer", to what comes out of
    each branch, before the gate (Gemma 2, Lumina-Next). "residual_post" has that one alone (Swin v2, arXiv 2111.09883,
    Figure 1, OLMo 2), "post" one on the sum alone (Vaswani et al. 2017).

    `soft`, the default: norms come in at strength 0 and those that should go stay at strength 1, both learned (`soft_norm`),
    so that the function is kept. Else they stand and are gone at once: only "pre" on a DiT keeps the function, and stage 2
    must teach the others. Raises `BadInput` on other placements and norms and, when it runs, on blocks of other kinds.
    """
    for given, known, what in ((placement, PLACEMENTS, "placement"), (norm, NORMS, "norm")):
        if given not in known:
            raise BadInput(f"place_norms {what}: got {given!r}, expected one of {tuple(known)}{did_you_mean(given, known)}")
    if not isinstance(soft, bool):
        raise BadInput(f"place_norms soft: got {soft!r}, expected true or false")
    return PlaceNorms(sites=items_of(selector), placement=placement, norm=norm, soft=soft)


def _opened(block: BlockSpec) -> BlockSpec:
    """A block as one with places for norms everywhere, which computes the same."""
    held = dict(block.ops)
    return BlockSpec(DiTNorms.kind, tuple((slot.name, held.get(slot.name, NONE)) for slot in DiTNorms.slots))


def _kind_of(norm: OpSpec) -> str:
    """Which kind of soft norm a norm becomes."""
    return norm.option("norm", norm.kind.removesuffix("_norm"))
