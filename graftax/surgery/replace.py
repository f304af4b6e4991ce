"""Edits that exchange operators: `replace` and `resize`."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.typing import ArrayLike

from graftax import ops
from graftax.blocks import block_kind, part, slot_of
from graftax.errors import BadInput, naming
from graftax.models.backbone import find
from graftax.models.shared import SHARED, Shared, shared_parts
from graftax.ops.base import CHANGED, Operator, Params, shapes_of
from graftax.ops.modulation import Activated, Affine, Modulation
from graftax.spec import ModelSpec, OpSpec, Option, members, op
from graftax.surgery.edits import Compose, Edit
from graftax.surgery.report import worst
from graftax.surgery.select import Selector, Site, listed, select

Importance = Mapping[str, ArrayLike]
"""By site ("blocks[3].mlp"), how much each hidden neuron matters, (m,): what `graftax.distill.neuron_importance` gives."""

Scions = Mapping[Site, OpSpec]

INITS = ("random", "transplant")
"""Where a scion's weights come from: PyTorch's default initialisation, or the operator that it replaces."""

CONDITIONS = 4096
"""Conditions, times and classes, over which modulations are fitted."""


@dataclass(frozen=True, kw_only=True)
class Exchange(Edit):
    """What exchanging edits have in common. `importance` is data, and no part of the edit's text.

    Attributes:
        init: one of `INITS`.
        importance: of neurons, for narrower MLPs.
    """

    init: str
    importance: Importance | None = field(default=None, compare=False, repr=False)
    draws = True

    def effect(self, spec: ModelSpec) -> str:
        return worst(*(_start(spec, site, scion, self.init) for site, scion in self.scions_on(spec).items()))

    @abstractmethod
    def scions_on(self, spec: ModelSpec) -> Scions:
        """The new operators by site, all options spelled out."""

    def on(self, spec: ModelSpec) -> ModelSpec:
        blocks = list(spec.blocks)
        for site, scion in self.scions_on(spec).items():
            blocks[site.block] = blocks[site.block].with_op(site.slot, scion)
        after = spec.replace(blocks=tuple(blocks))
        shared_parts(after)  # refuses what cannot be shared
        return after

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        assert rng is not None, "asked for by Edit"
        return exchange(spec, after, params, self.scions_on(spec), self.init, self.importance, rng)


@dataclass(frozen=True, kw_only=True)
class Replace(Exchange):
    """See `replace`.

    Attributes:
        sites: the selector's items.
        operator: what goes there.
    """

    sites: tuple[str | int, ...]
    operator: OpSpec
    name = "replace"

    def scions_on(self, spec: ModelSpec) -> Scions:
        return scions_at(spec, self.sites, self.operator)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items_text(self.sites), self.operator), {"init": self.init}


@dataclass(frozen=True, kw_only=True)
class Resize(Exchange):
    """See `resize`.

    Attributes:
        sites: the selector's items.
        ratio: hidden width over the model's.
    """

    sites: tuple[str | int, ...]
    ratio: float
    name = "resize"

    def scions_on(self, spec: ModelSpec) -> Scions:
        return {site: self._scion(spec, site) for site in select(self.sites, spec, "channel")}

    def _scion(self, spec: ModelSpec, site: Site) -> OpSpec:
        old = site.held(spec)
        if "ratio" not in dict(old.options):
            raise BadInput(f"resize {site}: holds {old}, which has no ratio")
        return resolved(spec, site, op(old.kind, **{**dict(old.options), "ratio": self.ratio}))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items_text(self.sites),), {"ratio": self.ratio, "init": self.init}


def replace(
    selector: Selector, kind: str | OpSpec, *, init: str | None = None, importance: Importance | None = None,
    **options: Option,
) -> Edit:  # fmt: skip
    """Put an operator of `kind` with `options` at the selected sites: `replace("blocks[50%].mixer", "hyena_x", kernel=4)`.

    `init` "random" draws PyTorch's defaults, as the grafting paper does (arXiv 2506.05340, released code); a site's
    weights depend on the key and the site alone, not on which other sites are chosen. "transplant" carries the replaced
    operator's weights over: attention to windows of any size; a Hyena's to another Hyena where they fit; an MLP to a wider
    one, which computes the same (`graftax.ops.mlp.split_neurons`), or to a narrower one, which keeps the neurons that
    `importance` ranks highest. Modulations (`adaln_shared`, `adaln_lowrank`) are fitted in closed form to what they replace,
    over times and classes, without any image (`graftax.ops.modulation`); norms take over what fits. None is the operator's
    default: "transplant" for modulations and norms, else "random". The same kind again is self-grafting. Raises `BadInput`
    (some of it when the edit runs) on impossible selectors, operators, options and transplants.
    """
    if isinstance(kind, OpSpec):
        kind, options = kind.kind, {**dict(kind.options), **options}
    cls = ops.operator_class(kind)
    init = cls.default_init if init is None else init
    scion = op(kind, **{**cls.options(), **options})  # defaults spelled out, for the record
    return Replace(sites=items_of(selector), operator=scion, init=checked_init(init), importance=importance)


def resize(selector: Selector, ratio: float, *, init: str = "random", importance: Importance | None = None) -> Edit:
    """Give the selected channel mixers another expansion ratio, their other options kept (paper: 3 and 6 in place of 4).

    `init` and `importance` as in `replace`. Raises `BadInput` as `replace` does.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise BadInput(f"resize: ratio {ratio!r}, expected a number")
    return Resize(sites=items_of(selector), ratio=float(ratio), init=checked_init(init), importance=importance)


def scions_at(spec: ModelSpec, sites: Selector, operator: OpSpec) -> Scions:
    """`operator` at the selected sites, its options spelled out. Raises `BadInput` where it does not fit one of them."""
    role = ops.operator_class(operator.kind).role
    return {site: resolved(spec, site, operator) for site in select(sites, spec, role)}


def resolved(spec: ModelSpec, site: Site, operator: OpSpec) -> OpSpec:
    """`operator` with its options spelled out for a site. Raises `BadInput` where it does not fit there."""
    with naming(site):
        return slot_of(spec.blocks[site.block].kind, site.slot).resolve(operator, spec.sizes)


def items_of(selector: Selector) -> tuple[str | int, ...]:
    """A selector's items; raises `BadInput` where there are none."""
    items = listed(selector)
    if not items:
        raise BadInput("selector []: empty, expected at least one site")
    return items


def items_text(items: tuple[str | int, ...]) -> Any:
    """Items as they stand in an edit's text: one alone, several as a list."""
    return items[0] if len(items) == 1 else list(items)


def checked_init(init: str) -> str:
    """`init`; raises `BadInput` where it is not one of `INITS`."""
    if init not in INITS:
        raise BadInput(f"init: got {init!r}, expected one of {INITS}")
    return init


# --- The exchange ----------------------------------------------------------------------------------------------------


def exchange(
    spec: ModelSpec, after: ModelSpec, params: Params, scions: Scions, init: str, importance: Importance | None,
    rng: jax.Array,
) -> Params:  # fmt: skip
    """The parameters of `after`, which is `spec` with `scions`. All that does not change is shared, not copied."""
    fitted: dict[Site, Params] = {}
    shared: dict[str, Params] = {}
    if init == "transplant":
        fitted, shared = _fitted_modulations(spec, params, scions)
    found = {
        site: fitted[site] if site in fitted else _weights(spec, site, scion, params, rng, init, importance)
        for site, scion in scions.items()
    }
    return settle_shared(after, put_sites(after, params, found), shared, rng)


def put_sites(spec: ModelSpec, params: Params, found: Mapping[Site, Params]) -> Params:
    """`params` with the weights `found` at their sites; all else is the same objects."""
    blocks = dict(params["blocks"])
    for site, weights in found.items():
        key = spec.block_key(site.block)
        blocks[key] = _with_part(blocks[key], site.slot.split("/"), weights)
    return {**params, "blocks": blocks}


def _with_part(tree: Params, path: Sequence[str], weights: Params) -> Params:
    """`tree` with `weights` at `path`; an operator without weights has no place in it."""
    if len(path) > 1:
        weights = _with_part(tree.get(path[0], {}), path[1:], weights)
    rest = {name: sub for name, sub in tree.items() if name != path[0]}
    return {**rest, path[0]: weights} if weights else rest


def settle_shared(spec: ModelSpec, params: Params, found: Mapping[str, Params], rng: jax.Array | None) -> Params:
    """`params` with the shared weights that `spec` needs: those `found`, else those that are there, else fresh ones."""
    kinds, rest = shared_parts(spec), {name: tree for name, tree in params.items() if name != SHARED}
    if not kinds:
        return rest
    have = {**params.get(SHARED, {}), **found}
    if missing := [kind for kind in kinds if kind not in have]:
        fresh = Shared(spec).init(jax.random.key(0) if rng is None else rng)["params"]
        have |= {kind: fresh[kind] for kind in missing}
    return {**rest, SHARED: {kind: have[kind] for kind in kinds}}


def _weights(
    spec: ModelSpec, site: Site, scion: OpSpec, params: Params, rng: jax.Array, init: str, importance: Importance | None
) -> Params:
    """Weights of the scion at a site."""
    slot = slot_of(spec.blocks[site.block].kind, site.slot)
    new = slot.build(scion, spec.sizes)
    fresh = _drawn(spec, site, new, rng)
    if init == "random":
        return fresh
    rootstock, old = site.held(spec), part(params["blocks"][spec.block_key(site.block)], site.slot)
    donor = slot.build(rootstock, spec.sizes)
    with naming(f"init 'transplant' at {site}"):
        carried = new.transplant(fresh, donor, old, (importance or {}).get(str(site)))
        if carried is None:
            raise BadInput(f"nothing of {rootstock} fits {scion}, expected init 'random'")
    return carried


def fresh_at(spec: ModelSpec, site: Site, rng: jax.Array) -> Params:
    """Fresh weights of the operator at a site of a model of `spec`; they depend on the key and the site alone."""
    return _drawn(spec, site, slot_of(spec.blocks[site.block].kind, site.slot).build(site.held(spec), spec.sizes), rng)


def _drawn(spec: ModelSpec, site: Site, operator: Operator, rng: jax.Array) -> Params:
    return _fresh(operator, jax.random.fold_in(jax.random.fold_in(rng, site.block), _stream(spec, site)))


def _start(spec: ModelSpec, site: Site, scion: OpSpec, init: str) -> str:
    """What putting the scion at a site does to the function."""
    slot = slot_of(spec.blocks[site.block].kind, site.slot)
    new, old = slot.build(scion, spec.sizes), slot.build(site.held(spec), spec.sizes)
    return new.start(old) if init == "transplant" or not shapes_of(new) else CHANGED


def _stream(spec: ModelSpec, site: Site) -> int:
    """The number that parts the random numbers of a block's slots."""
    tapped = block_kind(spec.blocks[site.block].kind).tapped
    return tapped.index(site.slot) if site.slot in tapped else zlib.crc32(site.slot.encode())


def weighed(edit: Edit, spec: ModelSpec) -> tuple[Site, ...]:
    """The sites whose neurons an edit must choose from: it wants their `importance`, which shows on data alone."""
    if isinstance(edit, Compose):
        found: list[Site] = []
        for part_of in edit.edits:
            found += weighed(part_of, spec)
            spec = part_of.on(spec)
        return tuple(found)
    if not isinstance(edit, Exchange) or edit.init != "transplant":
        return ()

    def chooses(site: Site, scion: OpSpec) -> bool:
        slot = slot_of(spec.blocks[site.block].kind, site.slot)
        return slot.build(scion, spec.sizes).chooses(slot.build(site.held(spec), spec.sizes))

    return tuple(site for site, scion in edit.scions_on(spec).items() if chooses(site, scion))


def with_importance(edit: Edit, importance: Importance) -> Edit:
    """`edit` with the importance of neurons that its transplants need."""
    if isinstance(edit, Compose):
        return Compose(tuple(with_importance(one, importance) for one in edit.edits))
    return dataclasses.replace(edit, importance=importance) if isinstance(edit, Exchange) else edit


@functools.partial(jax.jit, static_argnums=0)
def _fresh(operator: Operator, key: jax.Array) -> Params:
    """Fresh parameters, float32. Compiled once per operator; not mapped over sites, because some random generators then
    give every site other numbers."""
    inputs, reads = operator.example()
    return operator.init(key, *inputs, **reads).get("params", {})  # pyright: ignore


# --- Modulations: fitted together, since they may share weights ------------------------------------------------------------


def modulation_at(spec: ModelSpec, params: Params, site: Site) -> Affine:
    """The affine map that the modulation at a site computes of silu(vec)."""
    operator = slot_of(spec.blocks[site.block].kind, site.slot).build(site.held(spec), spec.sizes)
    assert isinstance(operator, Modulation), "by its role"
    own = part(params["blocks"][spec.block_key(site.block)], site.slot)
    return operator.affine(own, params.get(SHARED, {}).get(site.held(spec).kind))


def conditions(spec: ModelSpec, params: Params) -> Activated:
    """What a model's modulations are fed with, over times and conditions, without data."""
    return Activated.of(find(spec).vectors(spec, params, CONDITIONS))


def _fitted_modulations(spec: ModelSpec, params: Params, scions: Scions) -> tuple[dict[Site, Params], dict[str, Params]]:
    """Weights by site of the modulations among `scions`, and by kind those that they share."""
    chosen = [site for site in scions if slot_of(spec.blocks[site.block].kind, site.slot).role == "modulation"]
    if not chosen:
        return {}, {}
    u = conditions(spec, params)
    found: dict[Site, Params] = {}
    shared: dict[str, Params] = {}
    for scion, places in members(scions[site] for site in chosen).items():
        sites = [chosen[place] for place in places]
        operator = slot_of(spec.blocks[sites[0].block].kind, sites[0].slot).build(scion, spec.sizes)
        assert isinstance(operator, Modulation), "by its role"
        there = params.get(SHARED, {}).get(scion.kind)
        weights, own = operator.fit([modulation_at(spec, params, site) for site in sites], u, there)
        found |= dict(zip(sites, weights, strict=True))
        shared |= {} if own is None else {scion.kind: own}
    return found, shared
