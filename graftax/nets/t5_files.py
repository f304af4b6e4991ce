"""T5 and UMT5 encoders from Hugging Face transformers' folder layout: T5EncoderModel, UMT5EncoderModel, or the encoder of a
whole T5.

A folder holds `config.json` and `model.safetensors` (older ones `pytorch_model.bin`), or these in shards with an index. The
embedding is stored as `shared`, as `encoder.embed_tokens`, or as both. A decoder is left aside.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.hugging_face import read_weights, renamed, shapes_of
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import t5
from graftax.nets.t5 import T5Spec

FEED_FORWARD = {"t5": "relu", "umt5": "gated-gelu"}
"""Model types, and the MLP of each where the config does not say."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")

LARGEST = {"vocab_size": 1 << 20, "d_model": 1 << 15, "d_kv": 1 << 12, "d_ff": 1 << 17, "num_layers": 256,
           "num_heads": 1 << 10, "relative_attention_num_buckets": 1 << 12}  # fmt: skip
"""Sizes that are believed before anything is made of them."""

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
STEM = {
    **dict.fromkeys(EMBEDDINGS, "embed/embedding"), "encoder.final_layer_norm.weight": "norm/scale",
}  # fmt: skip
BLOCK = {
    "0.layer_norm": "norm1/scale", "0.SelfAttention.q": "query/kernel", "0.SelfAttention.k": "key/kernel",
    "0.SelfAttention.v": "value/kernel", "0.SelfAttention.o": "proj/kernel", "1.layer_norm": "norm2/scale",
    "1.DenseReluDense.wi_0": "gate/kernel", "1.DenseReluDense.wi_1": "fc1/kernel", "1.DenseReluDense.wo": "fc2/kernel",
    "0.SelfAttention.relative_attention_bias": "positions/embedding",
}  # fmt: skip
UNUSED = ("decoder.", "lm_head.")
_LAYER = re.compile(r"encoder\.block\.([0-9]{1,3})\.layer\.(.+)\.weight")


def spec_from_config(config: Mapping[str, Any]) -> T5Spec:
    """The spec that a `config.json` describes. Raises `BadInput` on what this code does not compute: T5 1.0's plain MLP."""
    kind = config.get("model_type", "t5")
    if (found := config.get("feed_forward_proj", FEED_FORWARD[kind])) != "gated-gelu":
        raise BadInput(f"feed_forward_proj: {shown(found)}, expected gated-gelu, as T5 v1.1 has it")
    names = [field.name for field in dataclasses.fields(T5Spec)]
    if missing := [name for name in names[:6] if name not in config]:
        raise BadInput(f"{missing[0]}: missing, expected the sizes of a T5")
    spec = T5Spec(**{name: config[name] for name in names[:-1] if name in config}, shared_positions=kind == "t5")
    for name, most in LARGEST.items():
        if getattr(spec, name) > most:
            raise BadInput(f"{name}: {getattr(spec, name)}, expected at most {most}")
    return spec


def read_params(folder: Path, spec: T5Spec) -> tuple[dict[str, Any], Source]:
    """(params, source) of a transformers folder: numpy, in the types that are stored, where possible views of the files.

    `source.sha256` is that of the weights. Raises `BadInput` naming the file and what is missing, unexpected or mis-shaped.
    """
    tensors, source = read_weights(folder, WEIGHTS)
    with naming(folder / source.name):
        return params_from_tensors(spec, tensors), source


def params_from_tensors(spec: T5Spec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of a flat state dict; every leaf is a view of its tensor.

    Raises `BadInput` on missing, unexpected and mis-shaped tensors, and on two embeddings that differ.
    """
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    shared, copy = (used.get(name) for name in EMBEDDINGS)
    if shared is not None and copy is not None:
        if not np.array_equal(shared, copy):
            raise BadInput(f"{EMBEDDINGS[1]} differs from {EMBEDDINGS[0]}: expected copies of one tensor")
        del used[EMBEDDINGS[1]]
    return renamed(used, shapes_of(t5.init, spec), partial(our_path, spec), _our_layout)


def our_path(spec: T5Spec, name: str) -> str:
    """Path of the parameter that transformers calls `name`; "" where there is none."""
    if name in STEM or not (match := _LAYER.fullmatch(name)):
        return STEM.get(name, "")
    index, layer = match.groups()
    path = f"blocks_{int(index)}/{BLOCK.get(layer, '')}"
    return path.removeprefix("blocks_0/") if spec.shared_positions and path == "blocks_0/positions/embedding" else path


def _our_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.T if path.endswith("kernel") else tensor  # (out, in) -> (in, out)
