"""Undo: the operators of the model before its grafts, put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
from flax.traverse_util import unflatten_dict

from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.lora import LORA
from graftax.models.stack import Params
from graftax.spec import SLOTS, ModelSpec
from graftax.surgery.check import leaves_by_path
from graftax.surgery.edits import Edit, Result
from graftax.surgery.report import compare
from graftax.surgery.select import Item, Selector, Site, listed, select

_SIZES = (
    "backbone", "input_size", "patch_size", "in_channels", "hidden_size", "num_heads", "num_classes", "learn_sigma",
    "compat",
)  # fmt: skip


@dataclass(frozen=True)
class Inverse(Edit):
    """An edit that restores sites of `original`: those that `chosen` names, all where it is None."""

    original: Model
    chosen: tuple[Item, ...] | None = None

    def scions(self, spec: ModelSpec, held: Iterable[Site]) -> set[Site]:
        """The sites that hold scions after this edit of a model of `spec` in which `held` did."""
        theirs = select(self.original.meta.sites, self.original.spec) if self.original.meta.sites else ()
        if self.chosen is None:
            return set(theirs)
        restored = set(select(self.chosen, spec))
        return (set(held) - restored) | (set(theirs) & restored)


def inverse(original: Model, selector: Selector | None = None) -> Edit:
    """Put the operators and weights of `original` back into a model grafted from it: `graft(student, inverse(teacher))`.

    The leaves put back are those of `original`, the same objects. Without a selector every operator and the program are
    restored, and parameters that the original does not have are dropped (merge projections, adapters): after any edits this
    gives the original, leaf by leaf. With a selector, read on the grafted model ("blocks[hyena_x].mixer"), these sites alone
    are restored, adapters included, and the program stays. Leaves outside the operators (adaLN, embedders, final layer) stay
    as they are: where they were fine-tuned, they keep what they learned. Where blocks were taken out, all blocks come back
    whole. Raises `BadInput` where the two models differ in size, or in depth while single sites are restored.
    """
    chosen = None if selector is None else listed(selector)

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        _check_sizes(original.spec, spec, _SIZES if chosen is None else (*_SIZES, "depth"))
        after = (
            _restore_all(original, spec, params)
            if chosen is None
            else _restore(original, spec, params, select(chosen, spec))
        )
        return *after, compare((spec, params), after)

    parts = [original.meta.source or "original", *map(str, chosen or ())]
    return Inverse(f"inverse({', '.join(parts)})", run, original, chosen)


def _restore_all(original: Model, spec: ModelSpec, params: Params) -> tuple[ModelSpec, Params]:
    """The original, but for leaves outside its operators: those come from `params` where they are there."""
    current, theirs = leaves_by_path(params), leaves_by_path(original.params)
    restored = _prefixes(Site(i, slot) for i in range(spec.depth) for slot in SLOTS)
    if spec.depth != original.spec.depth:  # blocks were numbered anew: no leaf within is known to be of the same block
        restored = ("blocks/", f"{LORA}/blocks/")
    leaves = {path: leaf if path.startswith(restored) else current.get(path, leaf) for path, leaf in theirs.items()}
    return original.spec, unflatten_dict(leaves, sep="/")


def _restore(original: Model, spec: ModelSpec, params: Params, sites: Sequence[Site]) -> tuple[ModelSpec, Params]:
    """`spec` and `params` with the original's operators at some sites, adapters there included."""
    blocks, restored = list(spec.blocks), _prefixes(sites)
    for site in sites:
        theirs = getattr(original.spec.blocks[site.block], site.slot)
        blocks[site.block] = dataclasses.replace(blocks[site.block], **{site.slot: theirs})
    adapters = [a for a in spec.adapters if not f"{LORA}/{a.path}".startswith(restored)]
    adapters += [a for a in original.spec.adapters if f"{LORA}/{a.path}".startswith(restored)]
    leaves = {path: leaf for path, leaf in leaves_by_path(params).items() if not path.startswith(restored)}
    leaves |= {path: leaf for path, leaf in leaves_by_path(original.params).items() if path.startswith(restored)}
    after = spec.replace(blocks=tuple(blocks), adapters=tuple(sorted(adapters, key=lambda adapter: adapter.path)))
    return after, unflatten_dict(leaves, sep="/")


def _prefixes(sites: Iterable[Site]) -> tuple[str, ...]:
    """How the paths of all leaves at `sites` begin, those of adapters too."""
    return tuple(f"{start}{site.path}/" for site in sites for start in ("", f"{LORA}/"))


def _check_sizes(original: ModelSpec, spec: ModelSpec, names: Iterable[str]) -> None:
    for name in names:
        before, now = getattr(original, name), getattr(spec, name)
        if before != now:
            raise BadInput(f"inverse: {name} is {now!r}, but the original has {before!r}; expected a model grafted from it")
