"""Hybrid plans: different operators in different blocks, mixers and MLPs, in one edit."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from graftax import ops
from graftax.errors import BadInput
from graftax.models.stack import Params
from graftax.spec import ModelSpec, OpSpec, op
from graftax.surgery.edits import Edit, Importance, Result, compose, replace
from graftax.surgery.select import Item, Selector, Site, listed, select


def hybrid(plan: Mapping[str | OpSpec, Selector], *, init: str = "random", importance: Importance | None = None) -> Edit:
    """Several replacements as one: `hybrid({"hyena_x": [1, 3, 5], op("swa", window=8): [11], op("mlp", ratio=3.0): "75%"})`.

    Keys are operators, by name or as an `OpSpec` where options differ from the defaults; values say where each goes:
    block numbers, what may stand between the brackets of a selector ("50%", "1::2"), or whole selectors. Every selector
    is read on the model as it is before the edit. Weights are those of `replace` with the same `init` and `importance`.
    Raises `BadInput` on an empty plan, on two operators for one site (naming both), and as `replace` does.
    """
    if not plan:
        raise BadInput("hybrid: got no operators, expected at least one")
    scions = [_scion(kind) for kind in plan]
    places = [_selectors(selector, scion) for selector, scion in zip(plan.values(), scions, strict=True)]

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        sites = [select(place, spec, _slot(scion)) for place, scion in zip(places, scions, strict=True)]
        _check_disjoint(scions, sites)
        edits = [
            replace(chosen, scion.kind, init=init, importance=importance, **dict(scion.options))  # pyright: ignore
            for scion, chosen in zip(scions, sites, strict=True)
        ]
        return compose(*edits)(spec, params, rng)

    parts = ", ".join(f"{scion}: [{', '.join(map(str, place))}]" for scion, place in zip(scions, places, strict=True))
    return Edit(f"hybrid({{{parts}}}, init={init})", run)


def _scion(key: str | OpSpec) -> OpSpec:
    """The operator of a plan's key, its defaults spelled out."""
    given = op(key) if isinstance(key, str) else key
    return op(given.kind, **{**ops.operator_class(given.kind).options(), **dict(given.options)})


def _slot(scion: OpSpec) -> str:
    return ops.operator_class(scion.kind).slot


def _selectors(selector: Selector, scion: OpSpec) -> tuple[Item, ...]:
    """Items of a selector; bare texts like "50%" are put between the brackets of one."""
    return tuple(
        f"blocks[{item}].{_slot(scion)}" if isinstance(item, str) and not item.startswith("blocks[") else item
        for item in listed(selector)
    )


def _check_disjoint(scions: list[OpSpec], sites: list[tuple[Site, ...]]) -> None:
    taken: dict[Site, OpSpec] = {}
    for scion, chosen in zip(scions, sites, strict=True):
        for site in chosen:
            if site in taken:
                raise BadInput(f"hybrid: {site} is given to {taken[site]} and to {scion}, expected one operator per site")
            taken[site] = scion
