"""Edits that exchange operators: `replace`, `resize`, and `compose`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from graftax import ops
from graftax.errors import BadInput
from graftax.models.stack import Params
from graftax.ops.mlp import MLP, keep_neurons
from graftax.spec import SLOTS, ModelSpec, OpSpec, Option, block_key, op
from graftax.surgery.report import Report, compare
from graftax.surgery.select import Item, Selector, Site, listed, select

Result = tuple[ModelSpec, Params, Report]
Importance = Mapping[str, ArrayLike]
"""By site ("blocks[3].mlp"), how much each hidden neuron matters, (m,): what `graftax.distill.neuron_importance` gives."""

INITS = ("random", "transplant")
"""Where a scion's weights come from: PyTorch's default initialisation, or the operator that it replaces."""


@dataclass(frozen=True)
class Edit:
    """A named pure function (spec, params, rng) -> (spec', params', report).

    `text` goes into the model's provenance. Untouched leaves must be the same objects afterwards. An edit of your own is
    `Edit("my edit", function)`.
    """

    text: str
    run: Callable[[ModelSpec, Params, jax.Array], Result]

    def __call__(self, spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        return self.run(spec, params, rng)

    def __str__(self) -> str:
        return self.text


def replace(
    selector: Selector, kind: str, *, init: str = "random", importance: Importance | None = None, **options: Option
) -> Edit:
    """Put an operator of `kind` with `options` at the selected sites: `replace("blocks[50%].mixer", "hyena_x", kernel=4)`.

    `init` "random" draws PyTorch's defaults, as the grafting paper does (arXiv 2506.05340, released code); a site's
    weights depend on the key and the site alone, not on which other sites are chosen. "transplant" carries the replaced
    operator's weights over: attention to windows of any size; a Hyena's to another Hyena where they fit; an MLP to a wider
    one, which computes the same (`graftax.ops.mlp.split_neurons`), or to a narrower one, which keeps the neurons that
    `importance` ranks highest. The same kind again is self-grafting. Raises `BadInput` (some of it when the edit runs) on
    impossible selectors, operators, options and transplants.
    """
    cls = ops.operator_class(kind)
    scion = op(kind, **{**cls.options(), **options})  # defaults spelled out, for the record
    chosen = listed(selector)
    _check_init(init)

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        scions = {site: scion for site in select(chosen, spec, cls.slot)}
        return _exchange(spec, params, rng, scions, init, importance)

    return Edit(f"replace({_text(chosen)}, {scion}, init={init})", run)


def resize(selector: Selector, ratio: float, *, init: str = "random", importance: Importance | None = None) -> Edit:
    """Give the selected channel mixers another expansion ratio, their other options kept (paper: 3 and 6 in place of 4).

    `init` and `importance` as in `replace`. Raises `BadInput` as `replace` does.
    """
    chosen = listed(selector)
    _check_init(init)

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        scions = {site: _with_ratio(spec, site, ratio) for site in select(chosen, spec, "mlp")}
        return _exchange(spec, params, rng, scions, init, importance)

    return Edit(f"resize({_text(chosen)}, ratio={ratio}, init={init})", run)


def compose(*edits: Edit) -> Edit:
    """One edit after the other, all with the same key: grafting sites in two edits or in one gives the same weights."""
    if not edits:
        raise BadInput("compose: got no edits, expected at least one")

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        spec, params, report = edits[0](spec, params, rng)
        for edit in edits[1:]:
            spec, params, later = edit(spec, params, rng)
            report = report.then(later)
        return spec, params, report

    return Edit(f"compose({', '.join(edit.text for edit in edits)})", run)


def _text(selector: tuple[Item, ...]) -> str:
    items = ", ".join(map(str, selector))
    return items if len(selector) == 1 else f"[{items}]"


def _check_init(init: str) -> None:
    if init not in INITS:
        raise BadInput(f"init: got {init!r}, expected one of {INITS}")


def _with_ratio(spec: ModelSpec, site: Site, ratio: float) -> OpSpec:
    old = getattr(spec.blocks[site.block], site.slot)
    if "ratio" not in dict(old.options):
        raise BadInput(f"resize {site}: holds {old}, which has no ratio")
    return op(old.kind, **{**dict(old.options), "ratio": ratio})


# --- The exchange ----------------------------------------------------------------------------------------------------


def _exchange(
    spec: ModelSpec, params: Params, rng: jax.Array, scions: Mapping[Site, OpSpec], init: str, importance: Importance | None
) -> Result:
    """`spec` and `params` with new operators at some sites. All that does not change is shared, not copied."""
    sizes = spec.hidden_size, spec.tokens, spec.num_heads
    scions = {site: ops.resolve(scion, site.slot, *sizes) for site, scion in scions.items()}
    specs, weights = list(spec.blocks), dict(params["blocks"])
    for site, scion in scions.items():
        key = block_key(site.block)
        grafted = _weights(spec, site, scion, params["blocks"][key][site.slot], rng, init, importance)
        specs[site.block] = dataclasses.replace(specs[site.block], **{site.slot: scion})
        weights[key] = {**weights[key], site.slot: grafted}
    after = spec.replace(blocks=tuple(specs)), {**params, "blocks": weights}
    return *after, compare((spec, params), after)


def _weights(
    spec: ModelSpec, site: Site, scion: OpSpec, old: Params, rng: jax.Array, init: str, importance: Importance | None
) -> Params:
    """Weights of the scion at a site; `old` are those of the operator that it replaces."""
    new = ops.build(scion, spec, init_style="torch")
    fresh = _fresh(new, jax.random.fold_in(jax.random.fold_in(rng, site.block), SLOTS.index(site.slot)))
    if init == "random":
        return fresh
    rootstock = getattr(spec.blocks[site.block], site.slot)
    donor = ops.build(rootstock, spec)
    if isinstance(new, MLP) and isinstance(donor, MLP) and new.hidden < donor.hidden:
        return keep_neurons(old, _importance_at(site, donor, importance), new.hidden)
    carried = new.transplant(fresh, donor, old)
    if carried is None:
        raise BadInput(f"init 'transplant' at {site}: nothing of {rootstock} fits {scion}, expected init 'random'")
    return carried


def _importance_at(site: Site, donor: MLP, importance: Importance | None) -> ArrayLike:
    """The importance of the donor's neurons. Nothing stands in for it: which neurons matter shows on data alone."""
    found = (importance or {}).get(str(site))
    if found is None or np.shape(found) != (donor.hidden,):
        got = "none" if found is None else f"shape {np.shape(found)}"
        raise BadInput(f"init 'transplant' at {site}: fewer neurons, and importance is {got}, expected ({donor.hidden},)")
    return found


@functools.partial(jax.jit, static_argnums=0)
def _fresh(operator: ops.Operator, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters, float32. Compiled once per operator; not mapped over sites, because some random generators then
    give every site other numbers."""
    return operator.init(key, jnp.zeros((1, operator.tokens, operator.width)))["params"]  # pyright: ignore
