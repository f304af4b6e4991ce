"""DINOv2 from Hugging Face transformers' folder layout (Dinov2Model, Dinov2WithRegistersModel).

A folder holds `config.json` and `model.safetensors` (older ones `pytorch_model.bin`). Heads for other tasks, and the mask
token that only training needs, are left aside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.hub import fetched
from graftax.checkpoint.hugging_face import CONFIG, read_config, read_weights, renamed, shapes_of
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import dinov2
from graftax.nets.dinov2 import DINOv2Spec

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
REGISTERS = {"dinov2": 0, "dinov2_with_registers": 4}
"""Model types, and the register tokens of each where the config does not say."""

DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "image_size": 224,
            "patch_size": 14, "use_swiglu_ffn": False}  # fmt: skip
FIXED = {"layer_norm_eps": dinov2.EPS, "hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
"""Settings that all published models have."""

LARGEST = {"hidden_size": 8192, "num_hidden_layers": 128, "mlp_ratio": 16, "image_size": 4096, "num_register_tokens": 64}
"""Sizes that are believed before anything is made of them."""

STEM = {
    "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens", "layernorm.weight": "norm/scale", "layernorm.bias": "norm/bias",
    "embeddings.patch_embeddings.projection.weight": "patch_embed/kernel",
    "embeddings.patch_embeddings.projection.bias": "patch_embed/bias",
}  # fmt: skip
BLOCK = {
    "attention.attention.query": "query", "attention.attention.key": "key", "attention.attention.value": "value",
    "attention.output.dense": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2", "mlp.weights_in": "fc1", "mlp.weights_out": "fc2",
}  # fmt: skip
PREFIX = "dinov2."
"""Before all names where the model is a part of another."""

UNUSED = ("embeddings.mask_token", "classifier.")
_LAYER = re.compile(r"encoder\.layer\.([0-9]{1,3})\.(.+)\.(weight|bias|lambda1)")


def load_dinov2(path: str | Path) -> tuple[DINOv2Spec, dict[str, Any], Source]:
    """(spec, params float32 numpy, source) of a transformers folder or an address hf://.

    `source.sha256` is that of the weights file. Raises `BadInput` naming the file and what is missing, unexpected or
    mis-shaped, and on settings that this code does not compute.
    """
    folder = fetched(path)
    config = read_config(folder, "transformers", tuple(REGISTERS))
    with naming(folder / CONFIG):
        spec = spec_from_config(config)
    tensors, source = read_weights(folder, WEIGHTS)
    with naming(folder / source.name):
        return spec, params_from_tensors(spec, tensors), source


def spec_from_config(config: Mapping[str, Any]) -> DINOv2Spec:
    """The spec that a `config.json` describes. Raises `BadInput` on what this code does not compute."""
    for name, expected in FIXED.items():
        if (found := config.get(name, expected)) != expected:
            raise BadInput(f"{name}: {shown(str(found))}, expected {expected}")
    registers = REGISTERS[config["model_type"]] and config.get("num_register_tokens", REGISTERS[config["model_type"]])
    fields = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    spec = DINOv2Spec(num_register_tokens=registers, **fields)
    for name, most in LARGEST.items():
        if getattr(spec, name) > most:
            raise BadInput(f"{name}: {getattr(spec, name)}, expected at most {most}")
    return spec


def params_from_tensors(spec: DINOv2Spec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree float32 of a flat state dict, of the model by itself or below `PREFIX`.

    Raises `BadInput` on missing, unexpected and mis-shaped tensors.
    """
    used = {name: tensor for name, tensor in tensors.items() if not name.removeprefix(PREFIX).startswith(UNUSED)}
    return renamed(used, shapes_of(dinov2.init, spec), our_path, _our_layout)


def our_path(name: str) -> str:
    """Path of the parameter that transformers calls `name`, with or without the prefix; "" where there is none."""
    name = name.removeprefix(PREFIX)
    if not (match := _LAYER.fullmatch(name)):
        return STEM.get(name, "")
    index, layer, leaf = match.groups()
    if leaf == "lambda1":
        return f"blocks_{index}/{layer.replace('layer_scale', 'scale')}"
    kind = {"weight": "scale" if layer.startswith("norm") else "kernel"}.get(leaf, leaf)
    return f"blocks_{index}/{BLOCK.get(layer, layer)}/{kind}"


def _our_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor in our order of axes, float32: the patch convolution (h, w, in, out), linear layers (in, out)."""
    tensor = tensor.astype(np.float32)
    if not path.endswith("kernel"):
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
