"""From a class in the modulation to a class that blocks look at, as an edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from graftax import blocks
from graftax.errors import BadInput
from graftax.ops.base import CHANGED, KEPT, Params
from graftax.spec import ModelSpec, op
from graftax.surgery.edits import Edit
from graftax.surgery.replace import fresh_at, items_of, items_text, put_sites
from graftax.surgery.report import Report
from graftax.surgery.select import Selector, Site, select

TOKENS = 2
"""Tokens that blocks look at: the time's and the class'."""

FROM, TO = "dit", "pixart"
"""Kinds of blocks before and after."""


@dataclass(frozen=True)
class ClassTokens(Edit):
    """See `class_tokens`.

    Attributes:
        sites: items of the selector, of any slots of the blocks.
        keep: whether the modulations still get the class too.
    """

    sites: tuple[str | int, ...]
    keep: bool
    name = "class_tokens"
    draws = True

    def on(self, spec: ModelSpec) -> ModelSpec:
        sizes = dataclasses.replace(spec.sizes, context=TOKENS)
        after = list(spec.blocks)
        for i in self._blocks(spec):
            after[i] = blocks.resolve(TO, sizes, {**dict(spec.blocks[i].ops), "cross": op("cross_mha")})
        said = {"class_tokens": True, **({} if self.keep else {"class_in_vec": False})}
        return spec.replace(sizes=sizes, blocks=tuple(after)).with_frame(**said)

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        assert rng is not None, "asked for by Edit"
        fresh = {site: fresh_at(after, site, rng) for site in (Site(i, "cross") for i in self._blocks(spec))}
        silent = {site: {**new, "proj": jax.tree.map(jnp.zeros_like, new["proj"])} for site, new in fresh.items()}
        params = put_sites(after, params, silent)
        if self.keep:
            return params
        fc2 = params["t_embedder"]["fc2"]
        mean = jnp.asarray(params["y_embedder"]["embedding"]).mean(0)
        return {**params, "t_embedder": {**params["t_embedder"], "fc2": {**fc2, "bias": fc2["bias"] + mean}}}

    def effect(self, spec: ModelSpec) -> str:
        return KEPT if self.keep else CHANGED

    def scions(self, spec: ModelSpec, report: Report, held: Iterable[Site]) -> set[Site]:
        return report.moved(held)  # what comes in stands where nothing was that it could learn from

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items_text(self.sites),), {"keep": self.keep}

    def _blocks(self, spec: ModelSpec) -> tuple[int, ...]:
        if not spec.classes or spec.sizes.context:
            what = "looks at tokens already" if spec.sizes.context else "has no classes"
            raise BadInput(f"{self}: the model {what}, expected one that is conditioned on a class by its modulations alone")
        found = tuple(dict.fromkeys(site.block for site in select(self.sites, spec)))
        if others := [i for i in found if spec.blocks[i].kind != FROM]:
            raise BadInput(f"{self}: block {others[0]} is of the kind {spec.blocks[others[0]].kind!r}, expected {FROM!r}")
        return found


def class_tokens(selector: Selector = "blocks[*].adaln", keep: bool = True) -> ClassTokens:
    """Let the selected blocks of a DiT look at their conditions: `class_tokens("blocks[*].adaln")`.

    Between its mixer and its channel mixer each block gets a cross-attention to two tokens, the embeddings of the time and
    of the class (DiT's own variant, arXiv 2212.09748, Section 3.2, placed as in PixArt, arXiv 2310.00426). Its last layer
    starts at zero: the function is kept to the bit. With `keep` false the modulations no longer get the class but the mean
    over all classes; then the function is lost and training must teach the blocks to look.

    Raises `BadInput`, when it runs, on models without classes or with other blocks.
    """
    if not isinstance(keep, bool):
        raise BadInput(f"class_tokens keep: got {keep!r}, expected true or false")
    return ClassTokens(items_of(selector), keep)
