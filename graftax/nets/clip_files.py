"""CLIP's text models from Hugging Face transformers' folder layout: CLIPTextModel, CLIPTextModelWithProjection.

A folder holds `config.json` and `model.safetensors` (older ones `pytorch_model.bin`), or these in shards with an index.
Tensors are named with or without `text_model.`; older files also hold the numbers of the positions, as integers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.hugging_face import read_weights, renamed, shapes_of
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import clip
from graftax.nets.clip import CLIPSpec
from graftax.nets.t5_files import WEIGHTS

LARGEST = {"vocab_size": 1 << 20, "hidden_size": 1 << 15, "intermediate_size": 1 << 17, "num_hidden_layers": 256,
           "max_position_embeddings": 1 << 16, "projection_dim": 1 << 15}  # fmt: skip
"""Sizes that are believed before anything is made of them."""

PREFIX = "text_model."
UNUSED = "embeddings.position_ids"
PROJECTION = "text_projection.weight"
STEM = {
    "embeddings.token_embedding.weight": "embed/embedding", "embeddings.position_embedding.weight": "positions/embedding",
    "final_layer_norm.weight": "norm/scale", "final_layer_norm.bias": "norm/bias", PROJECTION: "projection/kernel",
}  # fmt: skip
BLOCK = {
    "layer_norm1": "norm1", "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.out_proj": "proj", "layer_norm2": "norm2", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip
_LAYER = re.compile(r"encoder\.layers\.([0-9]{1,3})\.(.+)\.(weight|bias)")


def spec_from_config(config: Mapping[str, Any]) -> CLIPSpec:
    """The spec that a `config.json` describes. Raises `BadInput` on what this code does not compute."""
    names = [field.name for field in dataclasses.fields(CLIPSpec)]
    if missing := [name for name in names[:5] if name not in config]:
        raise BadInput(f"{missing[0]}: missing, expected the sizes of a CLIP text model")
    fields = {name: config[name] for name in names if name in config}
    spec = CLIPSpec(**{**fields, "projection_dim": config.get("projection_dim") or 0})
    for name, most in LARGEST.items():
        if getattr(spec, name) > most:
            raise BadInput(f"{name}: {getattr(spec, name)}, expected at most {most}")
    return spec


def read_params(folder: Path, spec: CLIPSpec) -> tuple[dict[str, Any], Source]:
    """(params, source) of a transformers folder: numpy, in the types that are stored, where possible views of the files.

    `source.sha256` is that of the weights. Raises `BadInput` naming the file and what is missing, unexpected or mis-shaped.
    """
    tensors, source = read_weights(folder, WEIGHTS)
    with naming(folder / source.name):
        return params_from_tensors(spec, tensors), source


def params_from_tensors(spec: CLIPSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of a flat state dict, with a "projection" where there is one; every leaf is a view of its tensor.

    Raises `BadInput` on missing, unexpected and mis-shaped tensors.
    """
    used = {name: tensor for name, tensor in tensors.items() if name.removeprefix(PREFIX) != UNUSED}
    shapes = shapes_of(clip.init, spec)
    if PROJECTION not in used:
        shapes = {path: shape for path, shape in shapes.items() if path != STEM[PROJECTION]}
    return renamed(used, shapes, our_path, _our_layout)


def our_path(name: str) -> str:
    """Path of the parameter that transformers calls `name`, with or without the prefix; "" where there is none."""
    name = name.removeprefix(PREFIX)
    if not (match := _LAYER.fullmatch(name)):
        return STEM.get(name, "")
    index, layer, leaf = match.groups()
    kind = {"weight": "scale" if layer.startswith("layer_norm") else "kernel"}.get(leaf, leaf)
    return f"blocks_{int(index)}/{BLOCK.get(layer, '')}/{kind}"


def _our_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.T if path.endswith("kernel") else tensor  # (out, in) -> (in, out)
