"""Where to graft: the sites that do least harm for the FLOPs that they save.

The grafting paper chooses by position (interleaved, deep) or by the locality of attention (arXiv 2506.05340, Section 4,
Figure 4b). Here the measure is the output itself, with the scions that stage 1 has made: `graftax.analyze.harm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graftax.errors import BadInput
from graftax.surgery.select import Site, compact

HarmFn = Callable[[Sequence[Site]], float]
"""Joint harm of a set of sites, as `graftax.analyze.harm.Harm` measures it."""


@dataclass(frozen=True)
class SiteHarm:
    """One candidate: its own `harm`, and the FLOPs per image `saved` by grafting it."""

    site: Site
    harm: float
    saved: int


@dataclass(frozen=True)
class Choice:
    """A set of sites, its joint `harm`, and the FLOPs per image `saved`."""

    sites: tuple[Site, ...]
    harm: float
    saved: int

    @property
    def selectors(self) -> tuple[str, ...]:
        """The set in the language of `graftax.surgery.replace`, one selector per slot."""
        return selectors(self.sites)


def selectors(sites: Sequence[Site]) -> tuple[str, ...]:
    """Sites as briefly as selectors can say it: blocks 1, 3, 5 -> ("blocks[1:6:2].mixer",)."""
    slots = sorted({site.slot for site in sites})
    return tuple(f"blocks[{compact(sorted(s.block for s in sites if s.slot == slot))}].{slot}" for slot in slots)


def measure_sites(harm: HarmFn, saved: Mapping[Site, int]) -> tuple[SiteHarm, ...]:
    """The harm of every site of `saved` on its own, in order."""
    return tuple(SiteHarm(site, harm([site]), saved[site]) for site in sorted(saved))


def evaluate_sites(harm: HarmFn, saved: Mapping[Site, int], sites: Sequence[Site]) -> Choice:
    """The joint harm of any set of sites."""
    return Choice(tuple(sorted(sites)), harm(sites), _total(sites, saved))


def choose_sites(found: Sequence[SiteHarm], saving: int) -> tuple[Site, ...]:
    """Sites that together save at least `saving` FLOPs per image, chosen by their own harm per FLOP, the least first.

    Harms are taken to add up, so that nothing need be measured again. Sites that save nothing are never chosen. For a
    budget of FLOPs, `saving` is the teacher's FLOPs less that budget. Raises `BadInput` where all sites save too little.
    """
    saved = {one.site: one.saved for one in found if one.saved > 0}
    price = {one.site: one.harm / one.saved for one in found if one.saved > 0}
    _check_saving(saved, saving)
    chosen: list[Site] = []
    for site in sorted(saved, key=lambda site: (price[site], site)):
        if _total(chosen, saved) < saving:
            chosen.append(site)
    return _trimmed(chosen, saved, saving)


def greedy_search(harm: HarmFn, saved: Mapping[Site, int], saving: int) -> Choice:
    """As `choose_sites`, but the joint harm is measured anew for every addition, so that errors may compound or cancel.

    Each round takes the site that adds least joint harm per FLOP saved: of s sites, k are chosen in about k (s - k / 2)
    measurements. Raises `BadInput` where all sites save too little.
    """
    saved = {site: flops for site, flops in sorted(saved.items()) if flops > 0}
    _check_saving(saved, saving)
    chosen: list[Site] = []
    current = 0.0
    while _total(chosen, saved) < saving:
        joint = {site: harm([*chosen, site]) for site in saved if site not in chosen}
        cost = {site: (joint[site] - current) / saved[site] for site in joint}
        best = min(cost, key=cost.__getitem__)
        chosen, current = [*chosen, best], joint[best]
    return evaluate_sites(harm, saved, _trimmed(chosen, saved, saving))


def _total(sites: Sequence[Site], saved: Mapping[Site, int]) -> int:
    return sum(saved[site] for site in sites)


def _check_saving(saved: Mapping[Site, int], saving: int) -> None:
    possible = _total(list(saved), saved)
    if not 0 < saving <= possible:
        raise BadInput(f"saving: got {saving:,} FLOPs per image, expected 1 to {possible:,}, what all sites save together")


def _trimmed(chosen: list[Site], saved: Mapping[Site, int], saving: int) -> tuple[Site, ...]:
    """The sites without those that a larger, later one has made superfluous, in order."""
    kept = list(chosen)
    for site in reversed(chosen):
        if _total(kept, saved) - saved[site] >= saving:
            kept.remove(site)
    return tuple(sorted(kept))
