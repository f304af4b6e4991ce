"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as edits: put on any kernels, folded in when trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from graftax.errors import BadInput
from graftax.models.lora import LORA, init_adapters, materialise
from graftax.models.stack import Params
from graftax.spec import Adapter, ModelSpec
from graftax.surgery.check import leaves_by_path
from graftax.surgery.edits import Edit, Result
from graftax.surgery.report import compare
from graftax.surgery.select import select


def lora(targets: str | Iterable[str], rank: int = 8, alpha: float = 16.0) -> Edit:
    """Put adapters on kernels, W becoming W + alpha / rank * a b: `lora("blocks[50%].mixer", rank=8, alpha=16)`.

    A target is a selector ("blocks[50%].mixer": the kernels of these operators) or a regular expression on parameter
    paths, matched from the start to a "/" or the end ("blocks/.*/adaln", r"blocks/0\\d/mixer/qkv", "final"). Of what it
    names, the kernels of two axes that are both longer than `rank` get an adapter; biases, norms and filters of few taps
    do not. The function computed is unchanged at first. To train the adapters alone, freeze "(?!lora/).*".

    Raises `BadInput` on impossible ranks and alphas and, when the edit runs, on targets that name no such kernel or one
    that carries an adapter already.
    """
    chosen = (targets,) if isinstance(targets, str) else tuple(targets)
    _check(chosen, rank, alpha)

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        leaves = leaves_by_path(params)
        added = tuple(Adapter(path, rank, float(alpha)) for path in _kernels(chosen, spec, leaves, rank))
        fresh = leaves_by_path({LORA: init_adapters(rng, added, params)})
        after = _with_adapters(spec, added), unflatten_dict({**leaves, **fresh}, sep="/")
        return *after, compare((spec, params), after)

    return Edit(f"lora({', '.join(chosen)}, rank={rank}, alpha={alpha:g})", run)


def merge_lora() -> Edit:
    """Fold all adapters into their kernels: the same function without adapters, in a form that can be exported and grafted.

    Raises `BadInput`, when it runs, on a model without adapters.
    """

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        if not spec.adapters:
            raise BadInput("merge_lora: the model has no adapters")
        after = spec.replace(adapters=()), materialise(spec, params)
        return *after, compare((spec, params), after)

    return Edit("merge_lora()", run)


def _check(targets: tuple[str, ...], rank: int, alpha: float) -> None:
    if not targets:
        raise BadInput("lora: got no targets, expected at least one")
    if not isinstance(rank, int) or rank < 1:
        raise BadInput(f"lora: rank {rank!r}, expected a positive integer")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise BadInput(f"lora: alpha {alpha!r}, expected a positive number")


def _with_adapters(spec: ModelSpec, added: tuple[Adapter, ...]) -> ModelSpec:
    taken = {adapter.path for adapter in spec.adapters}
    if twice := [adapter.path for adapter in added if adapter.path in taken]:
        raise BadInput(f"lora: {twice[0]} carries an adapter already, expected other targets or merge_lora() first")
    return spec.replace(adapters=tuple(sorted((*spec.adapters, *added), key=lambda adapter: adapter.path)))


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
    # No path continues "blocks" with a bracket, so a selector cannot be meant as a pattern.
    text = "|".join(site.path for site in select(target, spec)) if target.startswith("blocks[") else target
    try:
        return re.compile(f"(?:{text})(?:/.*)?")
    except re.error as error:
        raise BadInput(f"lora: {target!r} is neither a selector nor a regular expression ({error})") from None
