"""File formats of SD3s: the authors' single file, and the folders of Hugging Face diffusers.

The authors' names (Stability-AI/sd3.5, `mmditx.py`) stand in the tables below; operators bring their own. Published files
put "model.diffusion_model." before them, and some hold a VAE and text encoders beside them, which are not read. diffusers'
(class SD3Transformer2DModel) differ by tables, in that queries, keys and values are tensors of their own, and in that the
modulations of the output and of the last block's text stand as scale and shift, not shift and scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from graftax.backbones.config_json import WEIGHTS, config_size, shown, sizes_of_config
from graftax.backbones.overrides import check_names
from graftax.backbones.sd3.backbone import OWN
from graftax.backbones.sd3.variants import HEADS, INPUT_SIZE, TEXT_TOKENS, dual_blocks, plain_like, sd3_spec
from graftax.backbones.state_dicts import heads_of, patches_of
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shape, Shapes, refuse
from graftax.models.network import param_shapes
from graftax.ops.attention_normed import MHANormed
from graftax.ops.base import TorchKey, linear_keys
from graftax.ops.mlp import MLP
from graftax.ops.modulation import AdaLN
from graftax.spec import ModelSpec, Option

STEM = (
    TorchKey("x_embedder/kernel", "x_embedder.proj.weight", "patch"),
    TorchKey("x_embedder/bias", "x_embedder.proj.bias", "same"),
    TorchKey("pos_embed", "pos_embed", "same"),
    *linear_keys("t_embedder/fc1", "t_embedder.mlp.0"),
    *linear_keys("t_embedder/fc2", "t_embedder.mlp.2"),
    *linear_keys("pooled_embedder/fc1", "y_embedder.mlp.0"),
    *linear_keys("pooled_embedder/fc2", "y_embedder.mlp.2"),
    *linear_keys("text_embedder", "context_embedder"),
    *linear_keys("final/adaln", "final_layer.adaLN_modulation.1"),
    *linear_keys("final/linear", "final_layer.linear"),
)
IN_BLOCK = tuple(
    (ours.format(stream), f"{theirs}.{layer}.", keys)
    for stream, theirs in (("img", "x_block"), ("txt", "context_block"))
    for ours, layer, keys in (
        ("{}/adaln/", "adaLN_modulation", AdaLN.torch_keys),
        ("attn/{}/", "attn", MHANormed.torch_keys),
        ("{}/attn2/", "attn2", MHANormed.torch_keys),
        ("{}/mlp/", "mlp", MLP.torch_keys),
    )
)
"""Of everything that a block may have: how our path begins, how their name begins, and what stands there."""

_BLOCK = re.compile(r"joint_blocks\.(0|[1-9][0-9]{0,3})\.(.+)")


class SD3File(Layout):
    """The authors' tensors in one file, the prefix before their names or not."""

    name = "sd3"
    prefix = "model.diffusion_model."

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return not config and "joint_blocks.0.x_block.attn.qkv.weight" in shapes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        refuse("tensors missing", [key.name for key in STEM if key.name not in shapes])
        patch, channels, variance = patches_of(shapes)
        if variance:
            raise BadInput(f"final_layer.linear.weight {shapes['final_layer.linear.weight']}: twice the input's channels")
        (width, text_width), (_, pooled_width) = (_matrix(shapes, name) for name in (_TEXT, _POOLED))
        normed = _LN_Q in shapes
        known = {width: width // _vector(shapes, _LN_Q)} if normed else HEADS
        found = [match for name in shapes if (match := _BLOCK.fullmatch(name))]
        return sd3_spec(
            input_size=_input_size(overrides, width), patch_size=patch, in_channels=channels, hidden_size=width,
            depth=1 + max((int(match[1]) for match in found), default=0), num_heads=heads_of(width, overrides, known, "SD3"),
            positions=_side(shapes), text_width=text_width, text_tokens=_text_tokens(overrides), pooled_width=pooled_width,
            qk_norm="rms" if normed else "none",
            dual_attention={int(match[1]) for match in found if match[2].startswith("x_block.attn2.")},
        )  # fmt: skip

    def keys(self, spec: ModelSpec) -> list[Key]:
        present: dict[str, Any] = flatten_dict(param_shapes(spec), sep="/")
        in_blocks = [
            Key.of(key, f"blocks/{spec.block_key(i)}/{ours}", f"joint_blocks.{i}.{theirs}")
            for i in range(spec.depth)
            for ours, theirs, keys in IN_BLOCK
            for key in keys
        ]
        return [key for key in (*map(Key.of, STEM), *in_blocks) if key.leaf in present]

    def check(self, spec: ModelSpec) -> None:
        _check_plain(spec, "SD3 files hold")


class DiffusersSD3(Layout):
    """A folder of diffusers' SD3Transformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-sd3"
    folder = WEIGHTS
    classes = ("SD3Transformer2DModel",)
    pipelines = ("StableDiffusion3Pipeline",)

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return config.get("_class_name") in self.classes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        sizes = sizes_of_config(config, shapes)
        if sizes["learn_sigma"]:
            raise BadInput(f"config.json out_channels: {config['out_channels']}, expected {config['in_channels']}")
        if (dim := config_size(config, "caption_projection_dim")) != sizes["hidden_size"]:
            raise BadInput(f"config.json caption_projection_dim: {dim}, expected the width {sizes['hidden_size']}")
        return sd3_spec(
            positions=_believed(config, shapes), text_width=config_size(config, "joint_attention_dim"),
            text_tokens=_text_tokens(overrides), pooled_width=config_size(config, "pooled_projection_dim"),
            qk_norm=_qk_norm(config), dual_attention=_dual(config), input_size=sizes["input_size"],
            patch_size=sizes["patch_size"], in_channels=sizes["in_channels"], hidden_size=sizes["hidden_size"],
            depth=sizes["depth"], num_heads=sizes["num_heads"],
        )  # fmt: skip

    def keys(self, spec: ModelSpec) -> list[Key]:
        return [_renamed(key, spec.depth - 1) for key in SD3File().keys(spec)]

    def check(self, spec: ModelSpec) -> None:
        _check_plain(spec, "diffusers' folders hold")

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        qk_norm = spec.blocks[0]["attn"].option("qk_norm")
        return {
            "_class_name": self.classes[0], "sample_size": spec.image_shape[0], "patch_size": spec.option("patch"),
            "in_channels": spec.option("channels"), "num_layers": spec.depth, "attention_head_dim": spec.sizes.head_dim,
            "num_attention_heads": spec.sizes.heads, "joint_attention_dim": spec.option("text_width"),
            "caption_projection_dim": spec.width, "pooled_projection_dim": spec.option("pooled_width"),
            "out_channels": spec.out_channels, "pos_embed_max_size": spec.option("positions"),
            "dual_attention_layers": dual_blocks(spec), "qk_norm": {value: key for key, value in _NORMS.items()}[qk_norm],
        }  # fmt: skip


LAYOUTS: tuple[Layout, ...] = (SD3File(), DiffusersSD3())


def _check_plain(spec: ModelSpec, holder: str) -> None:
    """Raise `BadInput` unless a model is an SD3 as published, of any size."""
    if spec != plain_like(spec):
        raise BadInput(
            f"export: {holder} plain SD3s alone, blocks 0..L-1 of joint_mha and mlp(ratio=4.0) up to sd3_last, without "
            "adapters; save a graftax folder"
        )


# --- What a file says, and what it leaves open -----------------------------------------------------------------------------

_TEXT, _POOLED, _LN_Q = "context_embedder.weight", "y_embedder.mlp.0.weight", "joint_blocks.0.x_block.attn.ln_q.weight"


def _vector(shapes: Shapes, name: str) -> int:
    if len(shapes[name]) != 1 or not shapes[name][0]:
        raise BadInput(f"{name} {shapes[name]}: expected (k,), one scale for each channel of a head")
    return shapes[name][0]


def _matrix(shapes: Shapes, name: str) -> Shape:
    if len(shapes[name]) != 2 or not min(shapes[name]):
        raise BadInput(f"{name} {shapes[name]}: expected (d, c)")
    return shapes[name]


def _side(shapes: Shapes, name: str = "pos_embed") -> int:
    """The side of the table of positions."""
    shape = shapes.get(name, ())
    if len(shape) != 3 or shape[0] != 1 or not shape[1] or math.isqrt(shape[1]) ** 2 != shape[1]:
        raise BadInput(f"{name} {shape}: expected (1, n, d) with a square number n of positions")
    return math.isqrt(shape[1])


def _believed(config: Config, shapes: Shapes) -> int:
    """The side of the table, which config and tensor must agree on before anything of that size is made."""
    said, found = config_size(config, "pos_embed_max_size"), _side(shapes, "pos_embed.pos_embed")
    if said != found:
        raise BadInput(f"config.json pos_embed_max_size: {said}, but the weights have {found}")
    return said


def _text_tokens(overrides: Mapping[str, Option]) -> int:
    """Tokens of a text: as the user says, else as many as the pipeline gives."""
    tokens = overrides.get("text_tokens", TEXT_TOKENS)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise BadInput(f"text_tokens: got {tokens!r}, expected a positive integer")
    return tokens


def _input_size(overrides: Mapping[str, Option], width: int) -> int:
    """Side of the model's own images: as the user says, else that of the published models."""
    size = overrides.get("input_size", INPUT_SIZE if width in HEADS else None)
    if not isinstance(size, int) or isinstance(size, bool):
        raise BadInput(f"input_size: got {size!r}, and no tensor tells it; give input_size=... (latent pixels of a side)")
    return size


# --- diffusers -----------------------------------------------------------------------------------------------------------

_NORMS = {None: "none", "rms_norm": "rms"}
"""What a config's `qk_norm` may be, and what we call it."""


def _qk_norm(config: Config) -> str:
    said = config.get("qk_norm")
    if said not in (*_NORMS,):
        raise BadInput(f"config.json qk_norm: {shown(said)}, expected one of {tuple(_NORMS)}")
    return _NORMS[said]


def _dual(config: Config) -> list[int]:
    said = config.get("dual_attention_layers", [])
    if not isinstance(said, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in said):
        raise BadInput(f"config.json dual_attention_layers: {shown(said)}, expected numbers of blocks")
    return said


_STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "": "pos_embed",  # "pos_embed", a tensor and no layer, there "pos_embed.pos_embed"
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_IN_BLOCK = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


def _renamed(key: Key, last: int) -> Key:
    """A key of the authors' file as one of diffusers': one tensor, its halves exchanged or not, or three to join."""
    (name,) = key.names
    match = _BLOCK.fullmatch(name)
    layer, _, leaf = (match[2] if match else name).rpartition(".")
    if not match:
        swap = layer == "final_layer.adaLN_modulation.1"
        return Key(key.leaf, (f"{_STEM[layer]}.{leaf}",), key.turn, swap=swap)
    swap = layer == "context_block.adaLN_modulation.1" and int(match[1]) == last
    names = tuple(f"transformer_blocks.{match[1]}.{one}.{leaf}" for one in _IN_BLOCK[layer])
    return Key(key.leaf, names, key.turn, swap=swap)
