"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as edits: put on any kernels, folded in when trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from graftax.errors import BadInput
from graftax.models.lora import LORA, init_adapters, materialise
from graftax.ops.base import KEPT, Params
from graftax.spec import Adapter, ModelSpec
from graftax.surgery.check import expected_leaves, leaves_by_path
from graftax.surgery.edits import Edit
from graftax.surgery.select import select


@dataclass(frozen=True)
class Lora(Edit):
    """See `lora`.

    Attributes:
        targets: selectors, or patterns of paths.
        rank: of every adapter.
        alpha: over the rank, factor of the change.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    name = "lora"
    draws = True

    def on(self, spec: ModelSpec) -> ModelSpec:
        taken = {adapter.path for adapter in spec.adapters}
        added = self._added(spec)
        if twice := [adapter.path for adapter in added if adapter.path in taken]:
            raise BadInput(f"lora: {twice[0]} carries an adapter already, expected other targets or merge_lora() first")
        return spec.replace(adapters=tuple(sorted((*spec.adapters, *added), key=lambda adapter: adapter.path)))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        assert rng is not None, "asked for by Edit"
        fresh = leaves_by_path({LORA: init_adapters(rng, self._added(spec), params)})
        return unflatten_dict({**leaves_by_path(params), **fresh}, sep="/")

    def effect(self, spec: ModelSpec) -> str:
        return KEPT

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.targets, {"rank": self.rank, "alpha": self.alpha}

    def _added(self, spec: ModelSpec) -> tuple[Adapter, ...]:
        paths = _kernels(self.targets, spec, expected_leaves(spec), self.rank)
        return tuple(Adapter(path, self.rank, self.alpha) for path in paths)


@dataclass(frozen=True)
class MergeLora(Edit):
    """See `merge_lora`."""

    name = "merge_lora"

    def on(self, spec: ModelSpec) -> ModelSpec:
        if not spec.adapters:
            raise BadInput("merge_lora: the model has no adapters")
        return spec.replace(adapters=())

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return materialise(spec, params)

    def effect(self, spec: ModelSpec) -> str:
        return KEPT

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {}


def lora(*targets: str | Sequence[str], rank: int = 8, alpha: float = 16.0) -> Lora:
    """Put adapters on kernels, W becoming W + alpha / rank * a b: `lora("blocks[50%].mixer", rank=8, alpha=16)`.

    A target is a selector ("blocks[50%].mixer": the kernels of these operators) or a regular expression on parameter
    paths, matched from the start to a "/" or the end ("blocks/.*/adaln", r"blocks/0\\d/mixer/qkv", "final"). Of what it
    names, the kernels of two axes that are both longer than `rank` get an adapter; biases, norms and filters of few taps
    do not. The function computed is unchanged at first. To train the adapters alone, freeze "(?!lora/).*".

    Raises `BadInput` on impossible ranks and alphas and, when the edit runs, on targets that name no such kernel or one
    that carries an adapter already.
    """
    chosen = tuple(target for one in targets for target in ((one,) if isinstance(one, str | int) else one))
    if wrong := [target for target in chosen if not isinstance(target, str)]:
        raise BadInput(f"lora: target {wrong[0]!r}, expected a selector or a path")
    if not chosen:
        raise BadInput("lora: got no targets, expected at least one")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise BadInput(f"lora: rank {rank!r}, expected a positive integer")
    if not (isinstance(alpha, int | float) and alpha > 0 and math.isfinite(alpha)):
        raise BadInput(f"lora: alpha {alpha!r}, expected a positive number")
    return Lora(chosen, rank, float(alpha))


def merge_lora() -> MergeLora:
    """Fold all adapters into their kernels: the same function without adapters, in a form that can be exported and grafted.

    Raises `BadInput`, when it runs, on a model without adapters.
    """
    return MergeLora()


def _kernels(targets: tuple[str, ...], spec: ModelSpec, leaves: Mapping[str, Any], rank: int) -> list[str]:
    """Paths of the kernels that get an adapter, sorted, each once."""
    able = [path for path, leaf in leaves.items() if path.endswith("/kernel") and leaf.ndim == 2 and min(leaf.shape) > rank]
    found: set[str] = set()
    for target in targets:
        pattern = _pattern(target, spec)
        named = [path for path in able if pattern.fullmatch(path)]
        if not named:
            example = f", like {able[0]!r}" if able else ""
            raise BadInput(f"lora: {target!r} names no kernel with two axes longer than rank {rank}{example}")
        found.update(named)
    return sorted(found)


def _pattern(target: str, spec: ModelSpec) -> re.Pattern[str]:
    """What the path of a leaf matches if `target` names it."""
    # No path continues a word with a bracket, so a selector cannot be meant as a pattern.
    is_selector = re.match(r"\w+\[", target) is not None
    text = "|".join(site.path(spec) for site in select(target, spec)) if is_selector else target
    try:
        return re.compile(f"(?:{text})(?:/.*)?")
    except re.error as error:
        raise BadInput(f"lora: {target!r} is neither a selector nor a regular expression ({error})") from None
