"""Where to graft: the sites that do least harm for the FLOPs that they save.

The grafting paper chooses by position (interleaved, deep) or by the locality of attention (arXiv 2506.05340, Section 4,
Figure 4b). Here the measure is the output itself, with the scions that stage 1 has made: `graftax.analyze.harm`.
`search` does all of it; the functions below it work on any measure of joint harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from graftax.analyze.harm import Harm, flops_saved
from graftax.distill.groups import group_sites
from graftax.distill.sites import check_pair, scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import flops
from graftax.spec import ModelSpec
from graftax.surgery import graft, inverse, replace, select
from graftax.surgery.select import Site, compact
from graftax.train.loop import Batch

N = TypeVar("N", int, float)
HarmFn = Callable[[Sequence[Site]], float]
"""Joint harm of a set of sites, as `graftax.analyze.harm.Harm` measures it."""


@dataclass(frozen=True)
class SiteHarm:
    """One candidate.

    Attributes:
        site: where.
        harm: its own.
        saved: FLOPs per image and pass that grafting it saves, or another quantity that adds up.
    """

    site: Site
    harm: float
    saved: float


@dataclass(frozen=True)
class Choice:
    """A set of sites.

    Attributes:
        sites: in order.
        harm: their joint one.
        saved: FLOPs per image and pass that grafting them saves.
    """

    sites: tuple[Site, ...]
    harm: float
    saved: int

    @property
    def selectors(self) -> tuple[str, ...]:
        """The set in the language of `graftax.surgery.replace`, one selector per slot."""
        return selectors(self.sites)


@dataclass(frozen=True, eq=False)
class Search:
    """What `search` found.

    Attributes:
        found: every candidate with its own harm.
        choices: sets that save enough by name: "least harm" by single harms, "greedy search" by joint ones, and by position
            "interleaved 50%" and "deep 50%".
        best: the first or the second of them, whichever does less harm.
        edits: that graft the best set, as `graftax.parse` reads them, one per operator.
        model: the student at the best set, the teacher elsewhere.
    """

    found: tuple[SiteHarm, ...]
    choices: dict[str, Choice]
    best: Choice
    edits: tuple[str, ...]
    model: Model


def search(
    teacher: Model, student: Model, heldout: Batch, *, share: float = 50, budget: int | None = None, seed: int = 0
) -> Search:
    """Find the sites that do least harm among those where `student` holds distilled scions, which must be at every block.

    Sets save as many FLOPs as interleaving `share` percent of the blocks does, or with a `budget` what brings the teacher
    down to so many FLOPs per image and pass. Harm is measured on `heldout` (image (n, h, w, c), label (n,)) at times and
    noise drawn from `seed` (`graftax.analyze.harm.Harm`). Raises `BadInput` where scions are missing, the models do not fit
    together, or all sites save too little.
    """
    check_pair(teacher, student)
    candidates = scion_sites(student, None)
    presets = _presets(student.spec, candidates, share)
    saved = flops_saved(teacher.spec, student.spec, candidates)
    saving = _total(presets["interleaved"], saved) if budget is None else flops(teacher.spec) - budget
    _check_saving({site: one for site, one in saved.items() if one > 0}, saving)  # before anything is measured
    harm = Harm(teacher, student, heldout, seed=seed)
    found = measure_sites(harm, saved)
    choices = {
        "least harm": evaluate_sites(harm, saved, choose_sites(found, saving)),
        "greedy search": greedy_search(harm, saved, saving),
        **{f"{name} {share:g}%": evaluate_sites(harm, saved, sites) for name, sites in presets.items()},
    }
    best = min((choices["least harm"], choices["greedy search"]), key=lambda choice: choice.harm)
    others = sorted(set(candidates) - set(best.sites))
    model = graft(student, inverse(teacher, others)) if others else student
    return Search(found, choices, best, edits_of(student.spec, best.sites), model)


def edits_of(student: ModelSpec, sites: Sequence[Site]) -> tuple[str, ...]:
    """The student's operators at some sites as edits of its teacher, one per operator:
    "replace(blocks[0,3].mixer, hyena_x(kernel=4), init=random)"."""
    groups = group_sites(student, sites).values()
    return tuple(str(replace(selectors(group.sites), group.op)) for group in groups)


def _presets(student: ModelSpec, candidates: Sequence[Site], share: float) -> dict[str, tuple[Site, ...]]:
    """The paper's choices by position, in every slot that has candidates."""
    slots = sorted({site.slot for site in candidates})
    items = {"interleaved": f"{share:g}%", "deep": f"deep:{share:g}%"}
    presets = {name: select([f"blocks[{item}].{slot}" for slot in slots], student) for name, item in items.items()}
    if missing := sorted({site for sites in presets.values() for site in sites} - set(candidates)):
        raise BadInput(f"student: no scion at {missing[0]}, expected them at every block, as blocks[*] gives them")
    return presets


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


def choose_sites(found: Sequence[SiteHarm], saving: float) -> tuple[Site, ...]:
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


def _total(sites: Sequence[Site], saved: Mapping[Site, N]) -> N:
    return sum(saved[site] for site in sites)  # pyright: ignore[reportReturnType]


def _check_saving(saved: Mapping[Site, float], saving: float) -> None:
    possible = _total(list(saved), saved)
    if not 0 < saving <= possible:
        raise BadInput(f"saving: got {saving:,} FLOPs per image, expected 1 to {possible:,}, what all sites save together")


def _trimmed(chosen: list[Site], saved: Mapping[Site, float], saving: float) -> tuple[Site, ...]:
    """The sites without those that a larger, later one has made superfluous, in order."""
    kept = list(chosen)
    for site in reversed(chosen):
        if _total(kept, saved) - saved[site] >= saving:
            kept.remove(site)
    return tuple(sorted(kept))
