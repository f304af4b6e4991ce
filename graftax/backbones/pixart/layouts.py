"""File formats of PixArts: the authors' own, of one file, and the folders of Hugging Face diffusers.

The authors' names (PixArt-alpha/PixArt-sigma, `diffusion/model/nets`) stand in the tables below; operators bring their own.
diffusers' (class PixArtTransformer2DModel) differ by tables, and in that queries, keys and values are tensors of their own.
It has no place for the null caption, which it never uses, nor for norms in attention and compressed keys. Both codes compute
positions anew, so that a table of them in a file is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftax.backbones.config_json import WEIGHTS, check_fixed, config_size, shown, sizes_of_config
from graftax.backbones.overrides import check_names
from graftax.backbones.pixart.backbone import OWN
from graftax.backbones.pixart.frame import MICRO
from graftax.backbones.pixart.variants import (
    HEADS,
    TEXT_TOKENS,
    WIDTH,
    interpolation_of,
    pixart_frame,
    pixart_spec,
)
from graftax.backbones.state_dicts import (
    BLOCK,
    block_keys,
    blocks_of,
    by_slot,
    check_operators,
    check_plain_program,
    grid_of,
    heads_of,
    patches_of,
    width_of,
)
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes
from graftax.models.shared import SHARED
from graftax.ops.base import TorchKey, linear_keys
from graftax.spec import ModelSpec, Option, Prediction, Sizes

STEM = (
    TorchKey("x_embedder/kernel", "x_embedder.proj.weight", "patch"),
    TorchKey("x_embedder/bias", "x_embedder.proj.bias", "same"),
    *linear_keys("t_embedder/fc1", "t_embedder.mlp.0"),
    *linear_keys("t_embedder/fc2", "t_embedder.mlp.2"),
    *linear_keys("caption/fc1", "y_embedder.y_proj.fc1"),
    *linear_keys("caption/fc2", "y_embedder.y_proj.fc2"),
    *linear_keys(f"{SHARED}/adaln_shared", "t_block.1"),
    TorchKey("final/table", "final_layer.scale_shift_table", "same"),
    *linear_keys("final/linear", "final_layer.linear"),
)
NULL = TorchKey("null_caption", "y_embedder.y_embedding", "same")
POSITIONS = "pos_embed"
MICRO_STEM = tuple(
    key
    for name, theirs in zip(MICRO, ("csize_embedder", "ar_embedder"), strict=True)
    for ours, layer in (("fc1", "mlp.0"), ("fc2", "mlp.2"))
    for key in linear_keys(f"{name}_embedder/{ours}", f"{theirs}.{layer}")
)
PREFIX = {
    "adaln": "scale_shift_", "norm1": "norm1.", "mixer": "attn.", "cross": "cross_attn.", "norm2": "norm2.", "mlp": "mlp.",
}  # fmt: skip
"""Slot -> how its tensors' names begin within a block; the table of a shared modulation is called "table"."""

_AS_WIDE_AS_THE_MODEL = (
    "x_embedder.proj.bias", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.bias", "y_embedder.y_proj.fc2.bias",
    "final_layer.linear.weight",
)  # fmt: skip


class PixArtFile(Layout):
    """The authors' state dict, the "state_dict" of a checkpoint, with grafted operators where a model has them."""

    name = "pixart"
    entry = "state_dict"

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return not config and {"x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight"} <= shapes.keys()

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        micro = any(key.name in shapes for key in MICRO_STEM)
        stem = [key.name for key in (*STEM, *(MICRO_STEM if micro else ()))]
        also = [name for name in (POSITIONS, NULL.name) if name in shapes]
        slots = by_slot(shapes, PREFIX, [*stem, *also], ("table",))
        d = width_of(shapes, _AS_WIDE_AS_THE_MODEL)
        p, c, learn_sigma = patches_of(shapes)
        heads = heads_of(d, overrides, {WIDTH: HEADS}, "PixArt")
        null_tokens, text_width = _caption(shapes)
        side = _side(shapes, overrides, p)
        sizes = Sizes(d, heads, d // heads, (side, side), context=_text_tokens(overrides, null_tokens, micro))
        frame = pixart_frame(
            patch_size=p, in_channels=c, side=side, interpolation=_interpolation(overrides, d, side * p, null_tokens),
            text_width=text_width, null_tokens=null_tokens, micro=micro,
        )  # fmt: skip
        blocks = blocks_of("pixart", sizes, slots, PREFIX, overrides)
        spec = ModelSpec("pixart", sizes, frame, Prediction(variance=learn_sigma), blocks)
        check_operators(self, spec, shapes, PREFIX)
        return spec

    def keys(self, spec: ModelSpec) -> list[Key]:
        stem = (*STEM, *(MICRO_STEM if spec.option("micro") else ()), *((NULL,) if spec.option("null_tokens") else ()))
        return [*map(Key.of, stem), *block_keys(spec, PREFIX)]

    def unread(self, spec: ModelSpec) -> tuple[str, ...]:
        return (POSITIONS,)

    def check(self, spec: ModelSpec) -> None:
        check_plain_program(spec, "pixart", "PixArt")
        for i, block in enumerate(spec.blocks):
            if block["adaln"].kind != "adaln_shared":
                raise BadInput(f"export: blocks[{i}].adaln is {block['adaln']}, but PixArt files hold adaln_shared alone")


class DiffusersPixArt(Layout):
    """A folder of diffusers' PixArtTransformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-pixart"
    folder = WEIGHTS
    classes = ("PixArtTransformer2DModel", "Transformer2DModel")  # today's, and that of releases before it had its own
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return config.get("_class_name") in self.classes and "adaln_single.linear.weight" in shapes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        check_fixed(config, FIXED)
        sizes = sizes_of_config(config, shapes)
        if (dim := config.get("cross_attention_dim", sizes["hidden_size"])) != sizes["hidden_size"]:
            raise BadInput(f"config.json cross_attention_dim: {shown(dim)}, expected the width {sizes['hidden_size']}")
        micro = any(name.startswith("adaln_single.emb.resolution_embedder.") for name in shapes)
        if (said := config.get("use_additional_conditions")) not in (None, micro):
            raise BadInput(f"config.json use_additional_conditions: {shown(said)}, but the weights say {micro}")
        tokens = _text_tokens(overrides, 0, micro)
        scale = _scale(config, sizes["input_size"])
        return pixart_spec(
            text_width=config_size(config, "caption_channels"), text_tokens=tokens, interpolation=scale, micro=micro, **sizes
        )

    def keys(self, spec: ModelSpec) -> list[Key]:
        found = [_renamed(key) for key in PixArtFile().keys(spec) if key.leaf != NULL.leaf]
        return [key for key in found if key.names]

    def unheld(self, spec: ModelSpec) -> tuple[str, ...]:
        return (NULL.leaf,)

    def check(self, spec: ModelSpec) -> None:
        side, patch = spec.image_shape[0], spec.option("patch")
        plain = pixart_spec(
            input_size=side, patch_size=patch, in_channels=spec.option("channels"), hidden_size=spec.width,
            depth=spec.depth, num_heads=spec.sizes.heads, learn_sigma=spec.prediction.variance,
            interpolation=spec.option("interpolation"), text_width=spec.option("text_width"),
            text_tokens=spec.sizes.context, null_tokens=spec.option("null_tokens"), micro=spec.option("micro"),
        )  # fmt: skip
        if spec != plain:
            raise BadInput(
                "export to diffusers: expected a plain PixArt, blocks 0..L-1 of mha, cross_mha and mlp(ratio=4.0), without "
                "adapters"
            )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        return {
            "_class_name": self.classes[0], "num_attention_heads": spec.sizes.heads,
            "attention_head_dim": spec.sizes.head_dim, "in_channels": spec.option("channels"),
            "out_channels": spec.out_channels, "num_layers": spec.depth, "sample_size": spec.image_shape[0],
            "patch_size": spec.option("patch"), "cross_attention_dim": spec.width,
            "caption_channels": spec.option("text_width"), "interpolation_scale": spec.option("interpolation"),
            "use_additional_conditions": spec.option("micro"), "norm_eps": 1e-6, **FIXED,
        }  # fmt: skip


LAYOUTS: tuple[Layout, ...] = (PixArtFile(), DiffusersPixArt())


# --- What a file leaves open -----------------------------------------------------------------------------------------------


def _caption(shapes: Shapes) -> tuple[int, int]:
    """Rows of the null caption, 0 without one, and channels of the text."""
    shape = shapes["y_embedder.y_proj.fc1.weight"]
    null = shapes.get(NULL.name, (0, shape[-1] if shape else 0))
    if len(shape) != 2 or len(null) != 2 or null[1] != shape[1]:
        raise BadInput(f"y_embedder.y_proj.fc1.weight {shape} and {NULL.name} {null}: expected (d, c) and (m, c)")
    return null[0], shape[1]


def _side(shapes: Shapes, overrides: Mapping[str, Option], patch: int) -> int:
    """Tokens on a side of the model's own images."""
    if POSITIONS in shapes:
        return grid_of(shapes)[0]
    size = overrides.get("input_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size % patch:
        raise BadInput(
            f"input_size: got {size!r}, and the file has no {POSITIONS}; give input_size=... (latent pixels of a side, a "
            f"multiple of {patch})"
        )
    return size // patch


def _text_tokens(overrides: Mapping[str, Option], null_tokens: int, micro: bool) -> int:
    """Tokens of a caption: as the user says, else as many as the null caption has, else as the authors took."""
    tokens = overrides.get("text_tokens", null_tokens or TEXT_TOKENS["alpha" if micro else "sigma"])
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise BadInput(f"text_tokens: got {tokens!r}, expected a positive integer")
    return tokens


def _interpolation(overrides: Mapping[str, Option], width: int, input_size: int, null_tokens: int) -> float:
    """What positions are divided by: as the user says, else as in the published model of this size."""
    value = overrides.get("interpolation")
    if value is None and width == WIDTH:
        generation = "alpha" if null_tokens == TEXT_TOKENS["alpha"] else "sigma"
        return interpolation_of(generation, 8 * input_size)
    if value is None:
        raise BadInput(
            f"interpolation: not stored in tensors and width {width} is no published PixArt's; give interpolation=... "
            "(pixels of a side / 512 there)"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadInput(f"interpolation: got {value!r}, expected a positive number")
    return float(value)


def _scale(config: Config, input_size: int) -> float:
    """A folder's `interpolation_scale`; diffusers has its own rule where it is left out."""
    value = config.get("interpolation_scale")
    value = max(input_size // 64, 1) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BadInput(f"config.json interpolation_scale: {shown(value)}, expected a positive number")
    return float(value)


# --- diffusers -----------------------------------------------------------------------------------------------------------


FIXED = {
    "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
"""Settings under which that class is a PixArt."""

_STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "final_layer.linear": "proj_out",
}
_IN_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_TABLE = "scale_shift_table"


def _renamed(key: Key) -> Key:
    """A key of the authors' file as one of diffusers': one tensor, several to join, or none where diffusers has no such
    operator."""
    (name,) = key.names
    match = BLOCK.fullmatch(name)
    if name.endswith(_TABLE):
        return Key(key.leaf, (f"transformer_blocks.{match[1]}.{_TABLE}" if match else _TABLE,), key.turn)
    layer, _, leaf = (match[2] if match else name).rpartition(".")
    if not match:
        return Key(key.leaf, (f"{_STEM[layer]}.{leaf}",), key.turn)
    return Key(key.leaf, tuple(f"transformer_blocks.{match[1]}.{one}.{leaf}" for one in _IN_BLOCK.get(layer, ())), key.turn)
