"""LoRA files (diffusers', kohya's) as edits: put on a model as adapters, or folded into its kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from graftax.errors import BadInput
from graftax.models.arguments import as_path
from graftax.models.lora import LORA, materialise
from graftax.models.lora_layers import LowRank
from graftax.ops.base import Params
from graftax.spec import Adapter, ModelSpec
from graftax.surgery.check import leaves_by_path
from graftax.surgery.edits import Edit


@dataclass(frozen=True)
class LoraFile(Edit):
    """See `lora_file`.

    Attributes:
        path: of the file.
        strength: factor of all its changes.
        merge: whether they go into the kernels.
    """

    path: str
    strength: float
    merge: bool
    name = "lora_file"

    def on(self, spec: ModelSpec) -> ModelSpec:
        changes = self._changes(spec)
        return spec if self.merge else _with_adapters(spec, changes)

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        changes = self._changes(spec)
        if self.merge:
            return _merged(spec, params, changes)
        leaves, held = leaves_by_path(params), {adapter.path: adapter for adapter in spec.adapters}
        for path, change in changes.items():
            a, b = jnp.asarray(change.down.T), jnp.asarray(change.up.T)  # (in, rank), (rank, out)
            if path in held:  # the factor of the adapter that is there is the new one's too
                factor = held[path].alpha / held[path].rank
                a = jnp.concatenate([leaves[f"{LORA}/{path}/a"], a], axis=1)
                b = jnp.concatenate([leaves[f"{LORA}/{path}/b"], b / factor])
            leaves |= {f"{LORA}/{path}/a": a, f"{LORA}/{path}/b": b}
        return unflatten_dict(leaves, sep="/")

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.path,), {"strength": self.strength, **({"merge": True} if self.merge else {})}

    def _changes(self, spec: ModelSpec) -> dict[str, LowRank]:
        from graftax.checkpoint.lora_files import read_lora  # reads safetensors: time that `import` saves

        return read_lora(self.path, spec, self.strength)


def lora_file(path: str | PathLike[str], strength: float = 1.0, merge: bool = False) -> LoraFile:
    """Put the LoRA in a file on a model: W + strength alpha / rank B A, alpha the rank where the file has none.

    Files are diffusers' (`transformer.LAYER.lora_A.weight`) or kohya's (`lora_unet_LAYER.lora_down.weight`), layers those of
    any of the family's layouts, also at hf://ORG/NAME/FILE (`graftax.checkpoint.lora_files`). The changes become adapters,
    which stage 2 can train on, or with `merge` go into the kernels. Where several layers are one kernel of ours (queries,
    keys, values) their ranks add up in its adapter; so do those of an adapter that is there already and the file's.

    Raises `BadInput` on a strength that is no finite number and, when it runs, on files that do not fit the model.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise BadInput(f"lora_file: strength {strength!r}, expected a finite number")
    if not isinstance(merge, bool):
        raise BadInput(f"lora_file: merge {merge!r}, expected true or false")
    return LoraFile(as_path(path), float(strength), merge)


def _with_adapters(spec: ModelSpec, changes: Mapping[str, LowRank]) -> ModelSpec:
    """`spec` with an adapter on every changed kernel, of the changes' ranks in addition to those that are there."""
    adapters = {adapter.path: adapter for adapter in spec.adapters}
    for path, change in changes.items():
        held = adapters.get(path, Adapter(path, change.rank, float(change.rank)))
        rank = change.rank + (held.rank if path in adapters else 0)
        adapters[path] = Adapter(path, rank, held.alpha / held.rank * rank)
    return spec.replace(adapters=tuple(adapters[path] for path in sorted(adapters)))


def _merged(spec: ModelSpec, params: Params, changes: Mapping[str, LowRank]) -> Params:
    """`params` with the changes in the kernels; adapters stay as they are."""
    bare = {name: tree for name, tree in params.items() if name != LORA}
    fresh = {f"{path}/{name}": jnp.asarray(side.T) for path, change in changes.items()
             for name, side in (("a", change.down), ("b", change.up))}  # fmt: skip
    alone = _with_adapters(spec.replace(adapters=()), changes)
    merged = materialise(alone, {**bare, LORA: unflatten_dict(fresh, sep="/")})
    return {**merged, **({LORA: params[LORA]} if LORA in params else {})}
