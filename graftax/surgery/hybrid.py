"""Hybrid plans: different operators in different blocks, mixers and MLPs, in one edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftax import ops
from graftax.errors import BadInput
from graftax.spec import ModelSpec, OpSpec, op
from graftax.surgery.grammar import Pair
from graftax.surgery.replace import Exchange, Importance, Scions, checked_init, items_of, items_text, scions_at
from graftax.surgery.select import SHAPE, Selector, Site


@dataclass(frozen=True, kw_only=True)
class Hybrid(Exchange):
    """See `hybrid`.

    Attributes:
        plan: operators, each with the selectors of its places.
    """

    plan: tuple[tuple[OpSpec, tuple[str | int, ...]], ...]
    name = "hybrid"

    def scions_on(self, spec: ModelSpec) -> Scions:
        found: dict[Site, OpSpec] = {}
        for scion, places in self.plan:
            for site, full in scions_at(spec, places, scion).items():
                if site in found:
                    raise BadInput(f"hybrid: {site} is given both {found[site]} and {full}, expected one operator")
                found[site] = full
        return found

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(Pair(scion, items_text(places)) for scion, places in self.plan), {"init": self.init}


def hybrid(
    *plan: Mapping[str | OpSpec, Selector] | Pair, init: str = "random", importance: Importance | None = None
) -> Hybrid:
    """Several replacements as one: `hybrid({"hyena_x": [1, 3, 5], op("swa", window=8): [11], op("mlp", ratio=3.0): "75%"})`.

    Keys are operators, by name or as an `OpSpec` where options differ from the defaults; values say where each goes:
    block numbers, what may stand between the brackets of a selector ("50%", "1::2"), or whole selectors. Every selector
    is read on the model as it is before the edit. Weights are those of `replace` with the same `init` and `importance`.
    Raises `BadInput` on an empty plan, on two operators for one site (naming both), and as `replace` does.
    """
    pairs = [pair for part in plan for pair in (part.items() if isinstance(part, Mapping) else [(part.key, part.value)])]
    if not pairs:
        raise BadInput("hybrid: got no operators, expected at least one")
    scions = [(_scion(kind), places) for kind, places in pairs]
    whole = tuple((scion, tuple(_whole(item, scion) for item in items_of(places))) for scion, places in scions)
    return Hybrid(plan=whole, init=checked_init(init), importance=importance)


def _scion(kind: str | OpSpec) -> OpSpec:
    """The operator with its defaults spelled out, for the record."""
    given = kind if isinstance(kind, OpSpec) else OpSpec(kind)
    return op(given.kind, **{**ops.operator_class(given.kind).options(), **dict(given.options)})


def _whole(item: str | int, scion: OpSpec) -> str | int:
    """A selector; what may stand between its brackets is completed."""
    if not isinstance(item, str) or SHAPE.fullmatch(item):
        return item
    return f"blocks[{item}].{ops.operator_class(scion.kind).role}"
