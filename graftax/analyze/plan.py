"""Which operators to graft where, for a goal: offers with what each saves and harms, sets of them, the Pareto front.

The choice among sites is that of `graftax.analyze.search`, with seconds, FLOPs or parameters in place of FLOPs alone, and
with several operators to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from graftax.analyze.search import SiteHarm, choose_sites, selectors
from graftax.errors import BadInput
from graftax.spec import OpSpec
from graftax.surgery import replace
from graftax.surgery.select import Site

MIXED = "mixed"
MARGINS = (1.0, 1.5)
"""How much of what the goal asks for is saved: just enough, and half as much again."""


@dataclass(frozen=True)
class Size:
    """What a model, or a part of it, takes.

    Attributes:
        seconds: of a forward pass.
        flops: per image and pass.
        params: weights.
    """

    seconds: float
    flops: float
    params: float

    def __add__(self, other: Size) -> Size:
        return Size(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Size)))

    def __sub__(self, other: Size) -> Size:
        return Size(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Size)))


GOALS = {"faster": "seconds", "flops": "flops", "params": "params"}
"""What may be asked for, and which of `Size` it is about."""


@dataclass(frozen=True)
class Goal:
    """What is asked for: `Goal("faster", 1.3)` (times the speed), `Goal("flops", 0.8)`, `Goal("params", 0.7)` (the share
    that is left). Raises `BadInput` on anything else, and where it asks for nothing.

    Attributes:
        name: one of `GOALS`.
        value: how much.
    """

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name not in GOALS:
            raise BadInput(f"goal: got {self.name!r}, expected one of {tuple(GOALS)}")
        low, high = (1, float("inf")) if self.name == "faster" else (0, 1)
        if not low < self.value < high:
            raise BadInput(f"{self.name}: got {self.value:g}, expected more than {low} and less than {high:g}")

    @property
    def quantity(self) -> str:
        """Which of `Size` it is about."""
        return GOALS[self.name]

    def saving(self, whole: Size) -> float:
        """How much of it must be saved."""
        left = 1 / self.value if self.name == "faster" else self.value
        return getattr(whole, self.quantity) * (1 - left)

    def reached(self, whole: Size, saved: float) -> float:
        """What saving so much gives: times the speed, or the share that is left."""
        left = 1 - saved / getattr(whole, self.quantity)
        return 1 / left if self.name == "faster" else left


@dataclass(frozen=True)
class Offer:
    """One operator at one site.

    Attributes:
        site: where.
        operator: what goes there.
        saved: what that saves.
        harm: of it alone (`graftax.analyze.harm.Harm`).
        init: where its weights come from.
    """

    site: Site
    operator: OpSpec
    saved: Size
    harm: float
    init: str = "random"


@dataclass(frozen=True)
class Graft:
    """A set of offers, no two at one site.

    Attributes:
        name: its operator, or `MIXED`.
        offers: in order of sites.
        harm: their joint one.
        size: of the model that holds them.
        faster: times the speed, predicted.
        flops: share that is left.
        params: likewise.
    """

    name: str
    offers: tuple[Offer, ...]
    harm: float
    size: Size
    faster: float
    flops: float
    params: float

    @property
    def edits(self) -> tuple[str, ...]:
        """As `graftax.parse` reads them, one per operator."""
        return edits_of(self.offers)


def made_of(name: str, offers: Sequence[Offer], harm: float, whole: Size) -> Graft:
    """The graft of some offers with their joint harm, on a model that takes `whole`."""
    size = whole
    for one in offers:
        size -= one.saved
    ratios = whole.seconds / size.seconds, size.flops / whole.flops, size.params / whole.params
    return Graft(name, tuple(sorted(offers, key=lambda one: one.site)), harm, size, *ratios)


def edits_of(offers: Iterable[Offer]) -> tuple[str, ...]:
    """Offers as edits, one per operator: "replace(blocks[0,3].mixer, hyena_x(kernel=4), init=random)"."""
    groups: dict[tuple[OpSpec, str], list[Site]] = {}
    for one in offers:
        groups.setdefault((one.operator, one.init), []).append(one.site)
    return tuple(str(replace(selectors(sites), op, init=init)) for (op, init), sites in groups.items())


def saves_at_most(offers: Iterable[Offer], quantity: str) -> float:
    """What is saved of a quantity where every site takes the offer that saves most."""
    return sum(getattr(one.saved, quantity) for one in largest(offers, quantity))


def cheapest(offers: Iterable[Offer], quantity: str) -> tuple[Offer, ...]:
    """For every site the offer of least harm for what it saves, among those that save anything."""
    best: dict[Site, Offer] = {}

    def price(one: Offer) -> float:
        return one.harm / getattr(one.saved, quantity)

    for one in offers:
        if getattr(one.saved, quantity) > 0 and (one.site not in best or price(one) < price(best[one.site])):
            best[one.site] = one
    return tuple(best.values())


def largest(offers: Iterable[Offer], quantity: str) -> tuple[Offer, ...]:
    """For every site the offer that saves most, among those that save anything."""
    best: dict[Site, Offer] = {}
    for one in sorted(offers, key=lambda one: getattr(one.saved, quantity)):
        if getattr(one.saved, quantity) > 0:
            best[one.site] = one
    return tuple(best.values())


def choose(offers: Sequence[Offer], quantity: str, saving: float) -> tuple[Offer, ...]:
    """Offers, one per site, that save so much of a quantity by `graftax.analyze.search.choose_sites`: least harm for what
    is saved first. None where all together save less."""
    if saves_at_most(offers, quantity) < saving:
        return ()
    by_site = {one.site: one for one in offers}
    found = [SiteHarm(one.site, one.harm, getattr(one.saved, quantity)) for one in offers]
    return tuple(by_site[site] for site in choose_sites(found, saving))


def front(grafts: Iterable[Graft]) -> tuple[Graft, ...]:
    """The grafts that no other one is at least as good as in speed, size and harm, least harm first."""

    def values(one: Graft) -> tuple[float, float, float]:
        return -one.faster, one.params, one.harm

    def beats(a: Graft, b: Graft) -> bool:
        return values(a) != values(b) and all(x <= y for x, y in zip(values(a), values(b), strict=True))

    unlike = {one.edits: one for one in grafts}.values()
    kept = [one for one in unlike if not any(beats(other, one) for other in unlike)]
    return tuple(sorted(kept, key=lambda one: one.harm))
