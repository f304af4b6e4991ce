"""The plan for a goal: what every operator takes at a model's size, how much harm it does at every site, what to graft."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax import ops
from graftax.analyze.harm import Harm, flops_saved
from graftax.analyze.plan import (
    MARGINS,
    MIXED,
    Goal,
    Graft,
    Offer,
    Size,
    cheapest,
    choose,
    front,
    largest,
    made_of,
    saves_at_most,
)
from graftax.analyze.search import selectors
from graftax.blocks import block_kind, part, slot_of
from graftax.distill import neuron_importance
from graftax.errors import BadInput
from graftax.evaluate.bench.timing import interleaved
from graftax.evaluate.gains import Place, distinct_places, measured_seconds, roofline_seconds
from graftax.evaluate.roofline import inputs_of
from graftax.models import Model
from graftax.models.collect import one_block
from graftax.models.cost import count_params, flops, operator_cost
from graftax.models.stack import runs
from graftax.ops.base import Params
from graftax.progress import Progress, say
from graftax.spec import ModelSpec, OpSpec, Option
from graftax.study.teaching import CALIBRATED, Teaching, from_noise
from graftax.surgery import compose, graft, parse, replace
from graftax.surgery.parse import parse_operator
from graftax.surgery.replace import put_sites, resolved, weighed, with_importance
from graftax.surgery.select import Site, all_sites
from graftax.train.chips import Chip

ROLES = ("mixer", "channel", "joint")
"""Of the slots whose operators are offered others."""

INHERITED = ("qk_norm", "bias", "text_out")
"""Options that a new operator has from the old one, where it knows them."""

RATIOS = (2.0, 3.0)
"""Of narrower MLPs, which are offered beside all that is registered."""


@dataclass(frozen=True)
class Line:
    """One operator in place of what a slot holds, at the model's size.

    Attributes:
        slot: where.
        held: what is there.
        operator: what it would be.
        sites: how many.
        seconds: of one run, of what is there and of the other.
        flops: likewise, per image.
        params: likewise.
        harm: the least and the largest of its sites, None where it saves nothing and was not taught.
    """

    slot: str
    held: OpSpec
    operator: OpSpec
    sites: int
    seconds: tuple[float, float]
    flops: tuple[int, int]
    params: tuple[int, int]
    harm: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """What `plan` found.

    Attributes:
        goal: what was asked for.
        whole: the model's own size.
        where: the chip of the roofline, or the device that was measured on.
        described: how harm was measured.
        lines: every operator that fits.
        offers: all that save something, with their harm.
        considered: every graft that reaches the goal.
        front: those of them that none beats in speed, size and harm, least harm first.
        measured: times the speed of those in `front`, run here; () where the chip is elsewhere.
    """

    goal: Goal
    whole: Size
    where: str
    described: str
    lines: tuple[Line, ...]
    offers: tuple[Offer, ...]
    considered: tuple[Graft, ...]
    front: tuple[Graft, ...]
    measured: tuple[float, ...] = ()


# --- The plan -------------------------------------------------------------------------------------------------------------


def plan(
    model: Model, goal: Goal, teaching: Teaching | None = None, *, operators: Sequence[str] = (), chip: Chip | None = None,
    batch: int = 1, rounds: int = 5, dtype: DTypeLike | None = None, seed: int = 0,
) -> Plan:  # fmt: skip
    """A small Pareto front of grafts that reach a goal, by speed, size and harm.

    Every operator that is registered for a slot's role and fits the model (or those of `operators`, "swa(window=4)") is
    timed by itself at the model's own size, on this device or by the roofline of `chip`, on `batch` images. Those that save
    what the goal is about are grafted everywhere, taught as `teaching` says (None: `from_noise`), and the harm of each site
    is measured (`graftax.analyze.harm.Harm`). Sites are chosen as `graftax.analyze.search.choose_sites` does, for
    each operator alone and for the cheapest one of every site; joint harm is measured. Grafts of the front are run, where
    the device is here. `dtype`: of matmuls, None for float32, by a roofline bfloat16. Raises `BadInput` where the goal
    cannot be reached, saying what can, and on `batch` or `rounds` below 1.
    """
    spec = model.spec
    if batch < 1:
        raise BadInput(f"plan batch: got {batch}, expected 1 or more")
    teaching = teaching or from_noise(spec)
    fitting = candidates(spec, operators)
    specs = {op: replace(selectors(sites), op).on(spec) for op, sites in fitting.items()}
    places = distinct_places([spec, *specs.values()])
    if chip is None:
        seconds, whole_seconds = measured_seconds(model, places, batch, rounds, dtype)
    else:
        seconds, whole_seconds = roofline_seconds(spec, places, batch, chip, dtype or jnp.bfloat16)
    whole = Size(whole_seconds, flops(spec), count_params(spec))
    within = _scaled(spec, seconds, whole_seconds)
    saved = {op: _saved(spec, specs[op], sites, within) for op, sites in fitting.items()}
    saving = goal.saving(whole)
    _check_reachable(goal, whole, saved, saving)
    found = _Measured(model, teaching, goal.quantity, saving, whole, seed)
    for op, own in saved.items():
        if any(getattr(size, goal.quantity) > 0 for size in own.values()):
            found.add(op, own)
    found.add_mixed()
    best = front(found.grafts)
    times = _run(model, [found.model_of(one) for one in best], batch, rounds, dtype) if chip is None else ()
    where = chip.name if chip else jax.devices()[0].device_kind
    lines = tuple(_line(spec, specs[op], op, sites, seconds, found.harms.get(op)) for op, sites in fitting.items())
    offers = tuple(found.offers)
    return Plan(goal, whole, where, teaching.described, lines, offers, tuple(found.grafts), best, times)


def candidates(spec: ModelSpec, operators: Sequence[str] = ()) -> dict[OpSpec, tuple[Site, ...]]:
    """Operators, options spelled out, with the sites where each fits and another one is. Raises `BadInput` where one of
    `operators` fits nowhere, or none does."""
    given = [parse_operator(text) for text in operators]
    found: dict[OpSpec, list[Site]] = {}
    for site in all_sites(spec, *ROLES):
        held = site.held(spec)
        role = slot_of(spec.blocks[site.block].kind, site.slot).role
        for op in given or [*_registered(role, held), *_narrower(held)]:
            if ops.operator_class(op.kind).role != role:
                continue
            try:
                full = resolved(spec, site, op)
                replace([site], full).on(spec)
            except BadInput:
                continue
            if full != held:
                found.setdefault(full, []).append(site)
    missing = {op.kind for op in given} - {op.kind for op in found}
    if missing or not found:
        what = f"operator {min(missing)}" if missing else "no operator"
        raise BadInput(f"plan: {what} fits nowhere in this model, expected some that do")
    return {op: tuple(sites) for op, sites in found.items()}


def _registered(role: str, held: OpSpec) -> list[OpSpec]:
    """All operators of a role with their defaults, but the norms, biases and outputs of `held`, so that its weights fit."""
    own = {name: value for name, value in held.options if name in INHERITED}

    def alike(known: Mapping[str, Option]) -> tuple[tuple[str, Option], ...]:
        return tuple((name, value) for name, value in own.items() if type(known.get(name)) is type(value))

    return [OpSpec(kind, alike(cls.options())) for kind, cls in ops.OPERATORS.items() if cls.role == role]


def _narrower(held: OpSpec) -> list[OpSpec]:
    ratio = held.option("ratio")
    options = dict(held.options)
    return [OpSpec(held.kind, tuple({**options, "ratio": r}.items())) for r in RATIOS if ratio and r < ratio]


def _scaled(spec: ModelSpec, seconds: Mapping[Place, float], whole: float) -> dict[Place, float]:
    """Times of operators as parts of a pass: a call by itself takes longer, so that in small models all add up to more than
    the pass takes; then they are shortened alike."""
    there = sum(seconds[_place(spec, Site(i, slot))] for i in runs(spec) for slot in block_kind(spec.blocks[i].kind).tapped)
    return {place: one * min(1.0, whole / there) for place, one in seconds.items()}


def _saved(spec: ModelSpec, after: ModelSpec, sites: Sequence[Site], seconds: Mapping[Place, float]) -> dict[Site, Size]:
    """What an operator saves at each of its sites."""
    order, counted = runs(spec), flops_saved(spec, after, sites)

    def saved(site: Site) -> Size:
        old, new = (_place(one, site) for one in (spec, after))
        params = [operator_cost(one, one.blocks[site.block], site.slot).params for one in (spec, after)]
        return Size(order.count(site.block) * (seconds[old] - seconds[new]), counted[site], params[0] - params[1])

    return {site: saved(site) for site in sites}


def _place(spec: ModelSpec, site: Site) -> Place:
    return spec.blocks[site.block].kind, site.slot, site.held(spec)


def _check_reachable(goal: Goal, whole: Size, saved: Mapping[OpSpec, Mapping[Site, Size]], saving: float) -> None:
    offers = [Offer(site, op, size, 0.0) for op, own in saved.items() for site, size in own.items()]
    most = saves_at_most(offers, goal.quantity)
    if most < saving:
        reached = goal.reached(whole, most)
        raise BadInput(
            f"{goal.name}: got {goal.value:g}, but no operator gives more than {reached:.3g} at all sites of this model"
        )


def _line(
    spec: ModelSpec, after: ModelSpec, op: OpSpec, sites: Sequence[Site], seconds: Mapping[Place, float],
    harms: Sequence[float] | None,
) -> Line:  # fmt: skip
    first = sites[0]
    both = (spec, after)
    costs = [operator_cost(one, one.blocks[first.block], first.slot) for one in both]
    old, new = (seconds[_place(one, first)] for one in both)
    harm = (min(harms), max(harms)) if harms else None
    return Line(
        first.slot, first.held(spec), op, len(sites), (old, new), (costs[0].flops, costs[1].flops),
        (costs[0].params, costs[1].params), harm,
    )  # fmt: skip


class _Measured:
    """Teaches one operator after the other and measures what it harms.

    Attributes:
        offers: all so far.
        grafts: all that reach the goal.
        harms: of each operator's sites.
    """

    def __init__(self, model: Model, teaching: Teaching, quantity: str, saving: float, whole: Size, seed: int) -> None:
        self.offers: list[Offer] = []
        self.grafts: list[Graft] = []
        self.harms: dict[OpSpec, list[float]] = {}
        self._model, self._teaching, self._quantity, self._saving = model, teaching, quantity, saving
        self._whole, self._seed = whole, seed
        self._weights: dict[tuple[Site, OpSpec], Params] = {}

    def add(self, op: OpSpec, saved: Mapping[Site, Size]) -> None:
        """One operator at all of its sites."""
        say(f"--- {op}: {len(saved)} sites")
        student, init = scions(self._model, op, tuple(saved), self._teaching, self._seed)
        student = self._teaching.teach(self._model, student, str(op))
        harm = Harm(self._model, student, self._teaching.heldout, seed=self._seed)
        with Progress(len(saved), f"harm of {op.kind}", unit="site") as progress:
            own = []
            for site, size in saved.items():
                own.append(Offer(site, op, size, harm([site]), init))
                progress.advance()
        self.harms[op] = [one.harm for one in own]
        self.offers += own
        for site in saved:
            self._weights[site, op] = part(one_block(student.spec, student.params["blocks"], site.block), site.slot)
        for margin in MARGINS:
            chosen = choose(own, self._quantity, margin * self._saving)
            if chosen:
                self.grafts.append(made_of(str(op), chosen, harm(one.site for one in chosen), self._whole))
        jax.clear_caches()  # each operator compiles its own programs, which nobody needs again

    def add_mixed(self) -> None:
        """For every site the operator of least harm for what it saves, where that is not enough the one that saves most."""
        for margin in MARGINS:
            pools = (pool(self.offers, self._quantity) for pool in (cheapest, largest))
            chosen = next(filter(None, (choose(pool, self._quantity, margin * self._saving) for pool in pools)), ())
            if len({one.operator for one in chosen}) > 1:
                harm = Harm(self._model, self.assembled(chosen), self._teaching.heldout, seed=self._seed)
                self.grafts.append(made_of(MIXED, chosen, harm(one.site for one in chosen), self._whole))

    def model_of(self, one: Graft) -> Model:
        """The graft with its taught scions."""
        return self.assembled(one.offers)

    def assembled(self, offers: Sequence[Offer]) -> Model:
        """The teacher with the taught scions of some offers."""
        bare = [dataclasses.replace(one, init="random") for one in offers]
        edits = made_of(MIXED, bare, 0.0, self._whole).edits
        student = graft(self._model, compose(*map(parse, edits)), jax.random.key(self._seed))
        weights = {one.site: self._weights[one.site, one.operator] for one in offers}
        return student.replace(params=put_sites(student.spec, student.params, weights))


def scions(model: Model, op: OpSpec, sites: Sequence[Site], teaching: Teaching, seed: int) -> tuple[Model, str]:
    """The model with `op` at some sites, and where its weights come from: transplanted where that is possible."""
    rng = jax.random.key(seed)
    edit = replace(selectors(sites), op, init="transplant")
    try:
        if chosen := weighed(edit, model.spec):
            found = neuron_importance(model, teaching.batches(), CALIBRATED, chosen, rng=rng, show=False)
            edit = with_importance(edit, found)
        return graft(model, edit, rng), "transplant"
    except BadInput:  # nothing can be carried over
        return graft(model, replace(selectors(sites), op, init="random"), rng), "random"


def _run(model: Model, students: Sequence[Model], batch: int, rounds: int, dtype: DTypeLike | None) -> tuple[float, ...]:
    """Times the model's speed, whole forward passes taking turns."""
    x, t, cond = inputs_of(model.spec, batch)
    calls: dict[int, Callable[[], Any]] = {
        i: lambda m=m: m.apply(x, t, dtype=dtype, **cond)[0] for i, m in enumerate([model, *students])
    }
    times = interleaved(calls, rounds)
    return tuple(times[0].over(times[i]) for i in range(1, len(calls)))
