"""What an edit is: a frozen value that says what to do, a pure function on (spec, params), and a text that reads back.

    edit = graftax.replace("blocks[50%].mixer", "hyena_x", kernel=4)
    str(edit)                          # replace(blocks[50%].mixer, hyena_x(kernel=4), init=random)
    parse(str(edit)) == edit           # graftax.surgery.grammar

The text goes into the model's provenance, so that what was done is a recipe that can be done again.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from graftax.errors import BadInput
from graftax.ops.base import CHANGED, Params
from graftax.spec import ModelSpec
from graftax.surgery.grammar import call_text
from graftax.surgery.report import Report, compare, worst
from graftax.surgery.select import Site

Result = tuple[ModelSpec, Params, Report]


class Edit(ABC):
    """An edit of a model. Subclasses are frozen dataclasses; one of your own needs `on` and `weights`.

    Attributes:
        name: the function that makes it, and the word with which its text begins.
        draws: whether it needs random numbers.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False

    @abstractmethod
    def on(self, spec: ModelSpec) -> ModelSpec:
        """What a model of `spec` is afterwards. Raises `BadInput` where the edit is impossible."""

    @abstractmethod
    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        """The parameters of `after` = `on(spec)` from those of `spec`; untouched leaves stay the same objects."""

    @abstractmethod
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the function called `name` makes this edit of: positional and keyword arguments."""

    def origin(self, spec: ModelSpec) -> tuple[int, ...] | None:
        """For every block afterwards the number that it had before; None where no block gets another number."""
        return None

    def effect(self, spec: ModelSpec) -> str:
        """What it does to the function of a model of `spec`: `KEPT`, `FITTED` or `CHANGED` (`graftax.ops.base`)."""
        return CHANGED

    def scions(self, spec: ModelSpec, report: Report, held: Iterable[Site]) -> set[Site]:
        """The sites that hold scions afterwards, of a model of `spec` in which `held` did."""
        return {*report.moved(held), *report.sites}

    def followed(
        self, spec: ModelSpec, params: Params, rng: jax.Array | None, held: Iterable[Site]
    ) -> tuple[Result, set[Site]]:
        """`self(spec, params, rng)`, and the sites that hold scions afterwards, where `held` did before."""
        result = self(spec, params, rng)
        return result, self.scions(spec, result[2], held)

    def __call__(self, spec: ModelSpec, params: Params, rng: jax.Array | None = None) -> Result:
        """(spec, params, what was done) afterwards. Raises `BadInput` where the edit is impossible or lacks its `rng`."""
        if self.draws and rng is None:
            raise BadInput(f"{self}: draws weights, expected rng")
        after = self.on(spec)
        changed = self.weights(spec, after, params, rng)
        origin, effect = self.origin(spec), self.effect(spec)
        return after, changed, compare((spec, params), (after, changed), origin=origin, effect=effect)

    def __str__(self) -> str:
        return call_text(self.name, *self.arguments())


@dataclass(frozen=True)
class Compose(Edit):
    """One edit after the other, all with the same key.

    Attributes:
        edits: in order.
    """

    edits: tuple[Edit, ...]
    name = "compose"

    @property
    def draws(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of them does."""
        return any(edit.draws for edit in self.edits)

    def on(self, spec: ModelSpec) -> ModelSpec:
        for edit in self.edits:
            spec = edit.on(spec)
        return spec

    def effect(self, spec: ModelSpec) -> str:
        effects = []
        for edit in self.edits:
            effects.append(edit.effect(spec))
            spec = edit.on(spec)
        return worst(*effects)

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return self(spec, params, rng)[1]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.edits, {}

    def __call__(self, spec: ModelSpec, params: Params, rng: jax.Array | None = None) -> Result:
        return self.followed(spec, params, rng, ())[0]

    def followed(
        self, spec: ModelSpec, params: Params, rng: jax.Array | None, held: Iterable[Site]
    ) -> tuple[Result, set[Site]]:
        (spec, params, report), sites = self.edits[0].followed(spec, params, rng, held)
        for edit in self.edits[1:]:
            (spec, params, later), sites = edit.followed(spec, params, rng, sites)
            report = report.then(later)
        return (spec, params, report), sites


def flat(edit: Edit) -> tuple[Edit, ...]:
    """The edits that `edit` is made of, in order, itself where it is no `Compose`."""
    return tuple(one for part in edit.edits for one in flat(part)) if isinstance(edit, Compose) else (edit,)


def integer(name: str, value: Any) -> int:
    """`value` as an int. Raises `BadInput`, naming the edit that was to be made of it, where it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(f"{name}: got {value!r}, expected an integer") from None


def compose(*edits: Edit) -> Edit:
    """One edit after the other, all with the same key: grafting sites in two edits or in one gives the same weights.

    Raises `BadInput` on no edits; a single one comes back as it is.
    """
    if not edits:
        raise BadInput("compose: got no edits, expected at least one")
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInput(f"compose: got {edit!r}, expected edits")
    return edits[0] if len(edits) == 1 else Compose(edits)
