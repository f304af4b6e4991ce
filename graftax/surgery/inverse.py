"""The way back: the original operators and weights put back into a model that was grafted from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.lora import LORA
from graftax.models.shared import SHARED
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.surgery.check import leaves_by_path
from graftax.surgery.edits import Edit
from graftax.surgery.replace import settle_shared
from graftax.surgery.report import Report
from graftax.surgery.select import Selector, Site, all_sites, listed, select

ORIGINAL = "original"
"""What texts call the model that the graft began with."""


@dataclass(frozen=True)
class Inverse(Edit):
    """See `inverse`. The original itself is no part of the text: whoever replays it says which model that is.

    Attributes:
        chosen: items of the selector of what is restored, None for everything.
        original: the model whose operators and weights come back.
    """

    chosen: tuple[str | int, ...] | None
    original: Model | None = field(default=None, compare=False, repr=False)
    name = "inverse"

    def on(self, spec: ModelSpec) -> ModelSpec:
        theirs = self._original.spec
        _check_sizes(theirs, spec, depth=self.chosen is not None)
        if self.chosen is None:
            return theirs
        sites = select(self.chosen, spec)
        blocks = list(spec.blocks)
        for site in sites:
            blocks[site.block] = blocks[site.block].with_op(site.slot, site.held(theirs))
        back = _prefixes(spec, sites)
        adapters = [a for a in spec.adapters if not f"{LORA}/{a.path}".startswith(back)]
        adapters += [a for a in theirs.adapters if f"{LORA}/{a.path}".startswith(back)]
        adapters.sort(key=lambda adapter: adapter.path)
        return spec.replace(blocks=tuple(blocks), adapters=tuple(adapters))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        original = self._original
        current, theirs = leaves_by_path(params), leaves_by_path(original.params)
        if self.chosen is not None:
            back = _prefixes(spec, select(self.chosen, spec))
            leaves = {path: leaf for path, leaf in current.items() if not path.startswith(back)}
            leaves |= {path: leaf for path, leaf in theirs.items() if path.startswith(back)}
            return settle_shared(after, unflatten_dict(leaves, sep="/"), original.params.get(SHARED, {}), rng)
        back = (*_prefixes(spec, all_sites(spec)), f"{SHARED}/")
        if spec.depth != after.depth:  # blocks were numbered anew: no leaf within is known to be of the same block
            back = ("blocks/", f"{LORA}/blocks/", f"{SHARED}/")
        leaves = {path: leaf if path.startswith(back) else current.get(path, leaf) for path, leaf in theirs.items()}
        return unflatten_dict(leaves, sep="/")

    def scions(self, spec: ModelSpec, report: Report, held: Iterable[Site]) -> set[Site]:
        original = self._original
        theirs = select(original.meta.sites, original.spec) if original.meta.sites else ()
        if self.chosen is None:
            return set(theirs)
        restored = set(select(self.chosen, spec))
        return (set(held) - restored) | (set(theirs) & restored)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (ORIGINAL, *(self.chosen or ())), {}

    @property
    def _original(self) -> Model:
        if self.original is None:
            raise BadInput(f"{self}: read from a text, which does not hold the original; expected graftax.inverse(model)")
        return self.original


def inverse(original: Model | str, *selector: Selector) -> Inverse:
    """Put the operators and weights of `original` back into a model grafted from it: `graft(student, inverse(teacher))`.

    The leaves put back are those of `original`, the same objects. Without a selector every operator and the program are
    restored, and parameters that the original does not have are dropped (merge projections, adapters): after any edits this
    gives the original, leaf by leaf. With selectors, read on the grafted model ("blocks[hyena_x].mixer"), these sites alone
    are restored, adapters included, and the program stays. Leaves outside the operators (embedders, final layer) stay as
    they are: where they were fine-tuned, they keep what they learned. Where blocks were taken out, all blocks come back
    whole. Raises `BadInput` where the two models differ in size, or in depth while single sites are restored.
    """
    model = original if isinstance(original, Model) else None
    if model is None and original != ORIGINAL:
        raise BadInput(f"inverse: got {original!r}, expected a model, or in a text the word {ORIGINAL}")
    return Inverse(tuple(item for one in selector for item in listed(one)) if selector else None, model)


def _prefixes(spec: ModelSpec, sites: Sequence[Site]) -> tuple[str, ...]:
    """How the paths of all leaves at `sites` begin, those of adapters too."""
    return tuple(f"{start}{site.path(spec)}/" for site in sites for start in ("", f"{LORA}/"))


def _check_sizes(original: ModelSpec, spec: ModelSpec, *, depth: bool) -> None:
    for name in ("backbone", "sizes", "frame", "prediction", *(["depth"] if depth else [])):
        before, now = getattr(original, name), getattr(spec, name)
        if before != now:
            raise BadInput(f"inverse: {name} is {now!r}, but the original has {before!r}; expected a model grafted from it")
