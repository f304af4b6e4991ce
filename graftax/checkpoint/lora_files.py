"""LoRA files as people have them: diffusers' (peft's names) and kohya's (sd-scripts), for every family with layouts.

    transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight   (rank, in)
    transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight   (out, rank)
    transformer.single_transformer_blocks.0.attn.to_q.alpha           none: as the metadata say, else the rank
    lora_unet_single_blocks_0_linear1.lora_down.weight, .lora_up.weight, .alpha

W becomes W + strength alpha / rank up down. A layer is known by the names that any layout of the model's family has for it,
whatever stands before them, and dots read as underscores (kohya's names keep no dots).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from graftax.checkpoint.files import existing_file
from graftax.checkpoint.hub import fetched
from graftax.checkpoint.members import shown
from graftax.checkpoint.paths import local_copy
from graftax.checkpoint.tensors import read_tensors, write_safetensors
from graftax.errors import BadInput, did_you_mean, naming
from graftax.models.backbone import module_of
from graftax.models.layout import Layout, Shape
from graftax.models.lora import LORA
from graftax.models.lora_layers import Layers, LowRank, layers_of, to_kernels, to_layers
from graftax.ops.base import Params
from graftax.spec import ModelSpec

DIFFUSERS, KOHYA = "transformer.", "lora_unet_"
PREFIXES = (DIFFUSERS, KOHYA, "diffusion_model.")
"""What stands before a layer's name; the last in files for ComfyUI."""

TEXT_ENCODERS = ("lora_te", "text_encoder")
"""How names begin that are not of the transformer."""

PARTS = {
    "lora_A.weight": "down", "lora_down.weight": "down", "lora_B.weight": "up", "lora_up.weight": "up", "alpha": "alpha"
}  # fmt: skip
"""What is behind a layer's name, and what it holds."""

METADATA = "lora_adapter_metadata"
"""Where diffusers writes peft's configuration."""

_NAME = re.compile(rf"(?P<layer>.+)\.(?P<part>{'|'.join(map(re.escape, PARTS))})")

Parts = dict[str, tuple[str, np.ndarray]]
"""Of one layer: part -> (name of the tensor, tensor)."""


def read_lora(path: str, spec: ModelSpec, strength: float) -> dict[str, LowRank]:
    """The changes of our kernels, by path, that a LoRA file for a model of `spec` holds, `strength` included, in float32.

    `path` may be in a bucket (gs://) or at the Hugging Face Hub (hf://ORG/NAME/FILE). Raises `BadInput`, naming the file and
    the tensor, on layers that the model does not have, text encoders', incomplete, mis-shaped and non-finite ones.
    """
    with local_copy(fetched(path)) as file, naming(file):
        tensors, source = read_tensors(existing_file(file))
        found = _sorted(tensors)
        layers, names = _known(found, spec)
        config = _config(source.metadata)
        return to_kernels(layers, {
            ours: _change(theirs, found[theirs], layers.shapes[ours], strength, config) for ours, theirs in names.items()
        })  # fmt: skip


def write_lora(path: Path, spec: ModelSpec, params: Params, layout: str | None = None) -> None:
    """Write a model's adapters as a LoRA file, a `.safetensors`: with a layout of folders, by default the first, in
    diffusers' names, with one of single files (the authors' names) in kohya's. alpha / rank goes into the weights.

    Raises `BadInput` on models without adapters, other suffixes, and kernels that the layout has no layer for.
    """
    known = {one.name: one for one in module_of(spec.backbone).LAYOUTS}
    if layout is not None and layout not in known:
        raise BadInput(f"{path}: layout {layout!r}, expected one of {tuple(known)} for a {spec.backbone}")
    if not known or not spec.adapters:
        raise BadInput(f"{path}: a {spec.backbone} with no {'adapters' if known else 'layout'}, expected some to write")
    if path.suffix != ".safetensors":
        raise BadInput(f"{path}: suffix {path.suffix!r}, expected .safetensors")
    chosen = known[layout] if layout else next((one for one in known.values() if one.folder), next(iter(known.values())))
    with naming(path):
        changes = to_layers(layers_of(chosen, spec), _adapted(spec, params))
    tensors: dict[str, np.ndarray] = {}
    for layer, change in changes.items():
        tensors |= _named(chosen, layer, change)
    write_safetensors(path, dict(sorted(tensors.items())), {"format": "pt"})


def _adapted(spec: ModelSpec, params: Params) -> dict[str, LowRank]:
    """What the adapters of a model change of the transposed kernels."""
    leaves: dict[str, Any] = flatten_dict(params[LORA], sep="/")
    found: dict[str, LowRank] = {}
    for adapter in spec.adapters:
        a, b = (np.asarray(leaves[f"{adapter.path}/{name}"], np.float32) for name in "ab")
        found[adapter.path] = LowRank(a.T, np.float32(adapter.alpha / adapter.rank) * b.T)
    return found


def _named(layout: Layout, layer: str, change: LowRank) -> dict[str, np.ndarray]:
    if layout.folder:
        return {f"{DIFFUSERS}{layer}.lora_A.weight": change.down, f"{DIFFUSERS}{layer}.lora_B.weight": change.up}
    name, alpha = KOHYA + _plain(layer), np.float32(change.rank)
    return {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up, f"{name}.alpha": np.array(alpha)}


# --- What a file says ------------------------------------------------------------------------------------------------------


def _sorted(tensors: Mapping[str, np.ndarray]) -> dict[str, Parts]:
    """The parts of every layer, by its name in the file."""
    found: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        if name.startswith(TEXT_ENCODERS):
            raise BadInput(f"{_key(name)}: a text encoder's, expected layers of the diffusion transformer alone")
        match = _NAME.fullmatch(name)
        if match is None:
            raise BadInput(f"{_key(name)}: no part of a LoRA, expected LAYER followed by one of {tuple(PARTS)}")
        parts = found.setdefault(match["layer"], {})
        if PARTS[match["part"]] in parts:
            other = parts[PARTS[match["part"]]][0]
            raise BadInput(f"{_key(name)}: {_key(other)} is there too, expected one of the two")
        parts[PARTS[match["part"]]] = name, tensor
    return found


def _known(found: Mapping[str, Parts], spec: ModelSpec) -> tuple[Layers, dict[str, str]]:
    """The layers of the layout that knows most of the names, and its name of each -> the file's."""
    plain = {layer: _plain(_bare(layer)) for layer in found}
    tables = [layers_of(layout, spec) for layout in module_of(spec.backbone).LAYOUTS]
    if not tables:
        raise BadInput(f"a {spec.backbone} has no layout but graftax's own, expected a model whose layers have other names")
    dotless = [{_plain(layer): layer for layer in table.keys} for table in tables]
    best = max(range(len(tables)), key=lambda i: sum(name in dotless[i] for name in plain.values()))
    names: dict[str, str] = {}
    for layer, name in plain.items():
        key = _key(next(iter(found[layer].values()))[0])
        if (ours := dotless[best].get(name)) is None:
            near = did_you_mean(_bare(layer), tables[best].keys)
            raise BadInput(f"{key}: no linear layer of this {spec.backbone} of {spec.depth} blocks{near}")
        if ours in names:
            raise BadInput(f"{key}: the same layer as {_key(names[ours])}, expected each once")
        names[ours] = layer
    return tables[best], names


def _key(name: str) -> str:
    """A name for an error message: the numbers of blocks stand far behind in some."""
    return shown(name, 200)


def _bare(layer: str) -> str:
    """A layer's name without what stands before it."""
    start = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), "")
    return layer.removeprefix(start)


def _plain(layer: str) -> str:
    return layer.replace(".", "_")


def _change(layer: str, parts: Parts, shape: Shape, strength: float, config: Mapping[str, Any]) -> LowRank:
    """The change of a layer of `shape` (out, in), with its factor in `up`."""
    if missing := [part for part in ("down", "up") if part not in parts]:
        names = [name for name, part in PARTS.items() if part == missing[0]]
        key = next(iter(parts.values()))[0]
        raise BadInput(f"{_key(key)}: stands alone, expected {_key(layer)} with {' or '.join(names)} too")
    (down_name, down), (up_name, up) = parts["down"], parts["up"]
    out, width = shape
    if down.ndim != 2 or down.shape[1] != width or not len(down):
        raise BadInput(f"{_key(down_name)}: shape {down.shape}, expected (rank, {width}) in this model")
    if up.shape != (out, rank := len(down)):
        raise BadInput(f"{_key(up_name)}: shape {up.shape}, expected {(out, rank)} in this model")
    factor = strength * _scale(layer, parts, rank, config)
    change = LowRank(np.array(down, np.float32), np.float32(factor) * np.asarray(up, np.float32))
    for name, array in ((down_name, change.down), (up_name, change.up)):
        if not np.isfinite(array).all():
            raise BadInput(f"{_key(name)}: NaN or infinite at strength {strength}, expected finite numbers")
    return change


def _scale(layer: str, parts: Parts, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank; rank-stabilised LoRA divides by its root (arXiv 2312.03732)."""
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    if "alpha" not in parts:
        return _configured(layer, config, rank) / root
    name, tensor = parts["alpha"]
    if tensor.size != 1:
        raise BadInput(f"{_key(name)}: shape {tensor.shape}, expected one number")
    return float(tensor.astype(np.float32).reshape(())) / root


def _config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What peft's configuration says of the transformer; {} where there is none."""
    if METADATA not in metadata:
        return {}
    try:
        said = json.loads(metadata[METADATA])
        return {name.removeprefix(DIFFUSERS): value for name, value in said.items() if name.startswith(DIFFUSERS)}
    except (ValueError, AttributeError, RecursionError):
        raise BadInput(f"metadata {METADATA}: {shown(metadata[METADATA])}, expected a JSON object") from None


def _configured(layer: str, config: Mapping[str, Any], rank: int) -> float:
    """alpha of a layer as peft finds it: a pattern that its name ends with, else the one for all, else the rank."""
    alpha, patterns = config.get("lora_alpha", rank), config.get("alpha_pattern") or {}
    try:
        ends = [value for end, value in patterns.items() if f".{_bare(layer)}".endswith(f".{end}")]
        return float(ends[0] if ends else alpha)
    except (TypeError, ValueError, AttributeError):
        raise BadInput(f"metadata {METADATA}: lora_alpha {alpha!r}, alpha_pattern {patterns!r}, expected numbers") from None
