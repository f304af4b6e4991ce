"""`Recipe`: what a training does besides its objective, as one value with one line of text.

tread(2, 24, 0.5) + repa(8, features, width=768) + dispersive(7, infonce_l2, group=16)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from graftax.blocks import State, as_state, image_tokens
from graftax.errors import BadInput, did_you_mean
from graftax.models.policy import PLAIN, Depth, Mask, Policy, Route
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.surgery.grammar import Call, read
from graftax.train.recipes.against import HardNegatives
from graftax.train.recipes.alignment import repa, sra
from graftax.train.recipes.base import HEADS, Loss, Seen
from graftax.train.recipes.dispersive import Dispersive
from graftax.train.recipes.joint import FeatureWeight

T = TypeVar("T")
EXAMPLE = "tread(2, 24, 0.5) + repa(8)"
TERMS: dict[str, Callable[..., Any]] = {
    "tread": Route, "mask": Mask, "stochastic_depth": Depth, "repa": repa, "sra": sra, "dispersive": Dispersive,
    "features": FeatureWeight, "hard_negatives": HardNegatives,
}  # fmt: skip
"""What makes a recipe's terms, by the names they have in texts. To add one: write it, name it here."""

POLICY, LOSSES = range(2)  # streams of a recipe's key


@dataclass(frozen=True)
class Recipe:
    """Terms that go together in any number; two of one kind are told apart by their order.

    Attributes:
        policy: what passes of the training leave out.
        losses: on what is inside of the network.
        features: how much what is denoised with the latents counts, of models that do so; None: as much as these.
        negatives: wrong captions that are told from the right ones; None: none.
    """

    policy: Policy = PLAIN
    losses: tuple[Loss, ...] = ()
    features: FeatureWeight | None = None
    negatives: HardNegatives | None = None

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The recipe that a text describes, "" nothing. Raises `BadInput` on terms that are none, and what these refuse."""
        terms = [_term(text, part) for part in _parts(text)] if text.strip() else []
        routes = tuple(term for term in terms if isinstance(term, Route))
        losses = tuple(term for term in terms if not isinstance(term, Route | Mask | Depth | FeatureWeight | HardNegatives))
        policy = Policy(routes, _only(text, Depth, terms), _only(text, Mask, terms))
        return cls(policy, losses, _only(text, FeatureWeight, terms), _only(text, HardNegatives, terms))

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return bool(self.policy or self.losses or self.features or self.negatives)

    def __str__(self) -> str:
        besides = (*self.losses, *(term for term in (self.features, self.negatives) if term))
        return " + ".join(text for text in (str(self.policy), *map(str, besides)) if text)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the losses, in records and as keys of their heads: "repa", a second one "repa2"."""
        seen: dict[str, int] = {}
        for loss in self.losses:
            seen[loss.name] = seen.get(loss.name, 0) + 1
        counts = {name: itertools.count(1) for name in seen}
        numbered = ((loss.name, next(counts[loss.name])) for loss in self.losses)
        return tuple(name if number == 1 else f"{name}{number}" for name, number in numbered)

    @property
    def states(self) -> tuple[int, ...]:
        """Positions of the program behind which the losses look."""
        return tuple(sorted({loss.block - 1 for loss in self.losses}))

    @property
    def sees_run(self) -> bool:
        """Whether a loss needs the averaged model, or the number of the step."""
        return any(loss.sees_run for loss in self.losses)

    @property
    def passes(self) -> int:
        """Through the network with a gradient, of every image."""
        return 2 if self.negatives else 1

    def arrays(self, spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """Arrays of the data that terms take, one image's."""
        floats = {name: shape for loss in self.losses for name, shape in loss.arrays(spec).items()}
        found = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in floats.items()}
        return found | (self.negatives.arrays(spec) if self.negatives else {})

    def check(self, spec: ModelSpec, size: int) -> None:
        """Raise `BadInput` where a term does not fit a model, or batches of `size` images."""
        self.policy.check(spec)
        if (mask := self.policy.mask) and spec.prediction.target != "edm":
            raise BadInput(f"{mask}: {spec.prediction}, expected EDM's, whose clean images are held to masked patches")
        if self.features and not spec.option("features", 0):
            raise BadInput(f"{self.features}: the model denoises nothing beside its latents, expected one that does")
        if self.negatives:
            self.negatives.check(spec)
        for loss in self.losses:
            loss.check(spec, size)
            if isinstance(loss, Dispersive) and (route := self.policy.at(loss.block - 1)):
                raise BadInput(f"{loss}: block {loss.block} is on the route {route}, expected one where all tokens are")

    def heads(self, spec: ModelSpec, key: jax.Array) -> Params:
        """{"heads": the losses' by name} fresh, to stand beside a model's parameters; {} where no loss has one."""
        drawn = {name: loss.init(spec, jax.random.fold_in(key, i)) for i, (name, loss) in enumerate(self._named())}
        found = {name: head for name, head in drawn.items() if head}
        return {HEADS: found} if found else {}

    def draw(self, spec: ModelSpec, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        """What the terms need of a batch and of chance, each (b, ...): {"policy": .., "arrays": {loss's name: ..}}."""
        count, found = len(batch["image"]), {}
        for i, (name, loss) in enumerate(self._named()):
            given = {array: array_of(loss, batch, array, shape) for array, shape in loss.arrays(spec).items()}
            found[name] = given | loss.draw(jax.random.fold_in(jax.random.fold_in(key, LOSSES), i), count)
        return {"policy": self.policy.draw(spec, jax.random.fold_in(key, POLICY), count), "arrays": found}

    def values(
        self, spec: ModelSpec, params: Params, taps: Mapping[str, Any], drawn: Mapping[str, Any],
        teacher: Callable[[int, jax.Array], jax.Array], step: jax.Array,
    ) -> tuple[dict[str, jax.Array], jax.Array | float]:  # fmt: skip
        """The losses by name, (), and what they add to the objective.

        `params` with the heads; `taps` of a pass with `states`; `drawn`: see `draw`; `teacher`, `step`: see `Seen`.
        """
        tokens = {at: _streams(spec, at, taps[f"state/{at}"]) for at in self.states}
        found, total = {}, 0.0
        for name, loss in self._named():
            seen = Seen(tokens, lambda at: self.policy.kept(spec, drawn["policy"], at), drawn["arrays"][name], teacher, step)
            found[name] = loss.value(params.get(HEADS, {}).get(name, {}), seen)
            total += loss.factor(step) * found[name]
        return found, total

    def _named(self) -> list[tuple[str, Loss]]:
        return list(zip(self.names, self.losses, strict=True))


def _streams(spec: ModelSpec, position: int, value: Any) -> State:
    """A noted state, the stream that its block changes in the place of the image."""
    return {**as_state(value), "img": image_tokens(spec, position, value)}


NOTHING = Recipe()
"""Does nothing besides."""


def array_of(loss: object, batch: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> jax.Array:
    """The array of a batch that a term takes. Raises `BadInput` where there is none, or one of another `shape` (b, ..)."""
    if name not in batch:
        raise BadInput(f"data: a batch is {sorted(batch)}, expected {name} (b, {', '.join(map(str, shape))}) for {loss}")
    if batch[name].shape[1:] != shape:
        expected = f"(b, {', '.join(map(str, shape))})"
        raise BadInput(f"data {name}: shape {batch[name].shape}, expected {expected} for {loss}")
    return batch[name]


def _only(text: str, kind: type[T], terms: list[Any]) -> T | None:
    """The term of a kind, None where there is none."""
    found = [term for term in terms if isinstance(term, kind)]
    if len(found) > 1:
        raise BadInput(f"recipe {text!r}: {found[1]} is the second of its kind, expected one")
    return found[0] if found else None


def _parts(text: str) -> list[str]:
    """Pieces between the plus signs outside of brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "+" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _term(text: str, part: str) -> Any:
    call = read(part, "recipe", EXAMPLE)
    if not isinstance(call, Call) or call.name not in TERMS:
        name = call.name if isinstance(call, Call) else part
        near = did_you_mean(name, TERMS)
        raise BadInput(f"recipe {text!r}: {name!r} is no term, expected some of {', '.join(TERMS)}{near}")
    try:
        return TERMS[call.name](*call.arguments, **dict(call.keywords))
    except TypeError as error:
        raise BadInput(f"recipe {text!r}: {error}") from None
