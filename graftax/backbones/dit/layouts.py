"""File formats of DiTs: Facebook's own, of one file, and the folders of Hugging Face diffusers.

Facebook's names (facebookresearch/DiT, `models.py`) stand in the tables below; each operator brings its own keys and tells
whether a set of tensors is its own (`graftax.ops.base.Operator`). diffusers' (class DiTTransformer2DModel) differ by tables
too, and in three ways more: attention's qkv is three tensors, every block has a copy of the timestep and label embedders,
and there is no position table (both codes compute the same one). That code also deviates from DiT in its numbers
(`graftax.backbones.dit.variants.with_compat`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from graftax.backbones.config_json import WEIGHTS, check_fixed, config_size, shown, sizes_of_config
from graftax.backbones.dit.frame import SWITCHES, compat_of
from graftax.backbones.dit.overrides import OWN
from graftax.backbones.dit.relatives.zoo import check_published
from graftax.backbones.dit.variants import NORM_EPS, dit_spec
from graftax.backbones.embedders import sinusoidal_positions
from graftax.backbones.overrides import check_names
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
from graftax.models.shared import SHARED, shared_parts
from graftax.ops.base import Params, TorchKey, linear_keys
from graftax.spec import ModelSpec, Option, Options, Prediction, Sizes

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> heads of the published models (arXiv 2212.09748, Table 1): no tensor tells the number of heads."""

STEM = (
    TorchKey("x_embedder/kernel", "x_embedder.proj.weight", "patch"),
    TorchKey("x_embedder/bias", "x_embedder.proj.bias", "same"),
    *linear_keys("t_embedder/fc1", "t_embedder.mlp.0"),
    *linear_keys("t_embedder/fc2", "t_embedder.mlp.2"),
    TorchKey("y_embedder/embedding", "y_embedder.embedding_table.weight", "same"),
    TorchKey("pos_embed", "pos_embed", "same"),
    *linear_keys("final/adaln", "final_layer.adaLN_modulation.1"),
    *linear_keys("final/linear", "final_layer.linear"),
)
RELATIVES = {
    "s_embedder.proj.weight", "final_layer.norm_final.weight", "feat_rope.freqs_cos", "blocks.0.mlp.w12.weight"
}  # fmt: skip
"""Tensors of files whose other names are DiT's: DDT's, then LightningDiT's."""

PREFIX = {
    "adaln": "adaLN_modulation.", "norm1": "norm1.", "mixer": "attn.", "norm2": "norm2.", "mlp": "mlp.",
}  # fmt: skip
"""Slot -> how its tensors' names begin within a block."""

SHARED_PREFIX = "adaLN_shared."
"""Of what blocks with `adaln_shared` share; no published DiT has it."""

AS_WIDE_AS_THE_MODEL = (
    "x_embedder.proj.bias", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.bias", "pos_embed", "final_layer.linear.weight"
)  # fmt: skip
"""Tensors whose last axis is as long as the model is wide."""


MARKS = ("projectors.", "bn.", "ap_head.", "cls_projectors2.")
"""How names begin that tell a file of a relative (`graftax.backbones.dit.relatives`) from a DiT's."""


def classes_of(shapes: Shapes) -> int:
    """Rows of the label embedding without the null class."""
    shape = shapes["y_embedder.embedding_table.weight"]
    if len(shape) != 2 or shape[0] < 2:
        raise BadInput(f"y_embedder.embedding_table.weight {shape}: expected (classes + 1, d)")
    return shape[0] - 1


def is_dit(shapes: Shapes, config: Config) -> bool:
    """Whether a file's names are those of a DiT, or of a relative."""
    return not config and {"x_embedder.proj.weight", "y_embedder.embedding_table.weight"} <= shapes.keys()


class DiTFile(Layout):
    """Facebook's state dict, flat or as the "ema" of a training checkpoint, with grafted operators where a model has
    them."""

    name = "dit"
    files: ClassVar[str] = "DiT"
    prediction: ClassVar[Prediction] = Prediction()
    block: ClassVar[str] = "dit"
    stem: ClassVar[tuple[TorchKey, ...]] = STEM
    tokens: ClassVar[int] = 0  # before those of the image
    joint: ClassVar[bool] = False  # whether features are denoised with the image
    backbone: ClassVar[str] = "dit"
    overrides: ClassVar[tuple[str, ...]] = OWN
    others: ClassVar[tuple[str, ...]] = (SHARED_PREFIX,)  # how names may begin that only some models have

    def fits(self, shapes: Shapes, config: Config) -> bool:
        others = RELATIVES & shapes.keys() or any(name.startswith(MARKS) for name in shapes)
        return is_dit(shapes, config) and not others

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, self.overrides)
        slots = by_slot(shapes, PREFIX, [key.name for key in self.stem], ("1.bias", "1.weight"), more=self.others)
        d = width_of(shapes, AS_WIDE_AS_THE_MODEL)
        p, c, learn_sigma = patches_of(shapes)
        heads = heads_of(d, overrides, HEADS, "DiT")
        sizes = Sizes(d, heads, d // heads, grid_of(shapes, self.tokens), text=self.tokens)
        frame = (("patch", p), ("classes", self.class_count(shapes)), ("compat", "dit"), *self.images(shapes, c, overrides))
        blocks = blocks_of(self.block, sizes, slots, PREFIX, overrides)
        spec = ModelSpec(self.backbone, sizes, frame, dataclasses.replace(self.prediction, variance=learn_sigma), blocks)
        check_operators(self, spec, shapes, PREFIX)
        return spec

    def images(self, shapes: Shapes, channels: int, overrides: Mapping[str, Option]) -> Options:
        """The frame's options beside patches and classes; patches have so many channels."""
        return (("channels", channels),)

    def class_count(self, shapes: Shapes) -> int:
        """Classes that the label embedding knows."""
        return classes_of(shapes)

    def keys(self, spec: ModelSpec) -> list[Key]:
        found = [Key.of(key) for key in self.stem]
        for kind in shared_parts(spec):
            found += [Key.of(key, f"{SHARED}/{kind}/", SHARED_PREFIX) for key in linear_keys("", "1")]
        return found + block_keys(spec, PREFIX)

    def check(self, spec: ModelSpec) -> None:
        check_plain_program(spec, self.block, self.files)
        expected = dataclasses.replace(self.prediction, variance=spec.prediction.variance)
        if spec.prediction != expected:
            raise BadInput(f"export to {self.name!r}: the model has {spec.prediction}, expected {expected}")
        if bool(spec.option("features")) != self.joint:
            raise BadInput(
                f"export to {self.name!r}: the model denoises {spec.option('features', 0)} channels of features, expected "
                f"{'some' if self.joint else 'none'}"
            )
        if said := [name for name, default in SWITCHES.items() if spec.option(name, default) != default]:
            raise BadInput(f"export to {self.name!r}: no tensor tells the frame's {said[0]}; save a graftax folder")
        if compat_of(spec) != "dit":
            raise BadInput(f"export: the model has compat {compat_of(spec)!r}, with which DiT's code computes otherwise")

    def vet(self, path: Path, spec: ModelSpec) -> None:
        check_published(path, spec)


class DiffusersDiT(Layout):
    """A folder of diffusers' DiTTransformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-dit"
    folder = WEIGHTS
    classes = ("DiTTransformer2DModel", "Transformer2DModel")  # today's, and that of releases before DiT had its own
    pipelines = ("DiTPipeline",)

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return config.get("_class_name") in self.classes and "transformer_blocks.0.norm1.linear.weight" in shapes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        eps, expected = config.get("norm_eps", 1e-5), NORM_EPS["norm2"]["diffusers"]
        if overrides.get("compat") == "diffusers" and eps != expected:
            raise BadInput(f"config.json norm_eps: {shown(eps)}, expected {expected:g}, the one of compat 'diffusers'")
        check_fixed(config, FIXED)
        return dit_spec(num_classes=config_size(config, "num_embeds_ada_norm"), **sizes_of_config(config, shapes))

    def keys(self, spec: ModelSpec) -> list[Key]:
        ours = [key for key in DiTFile().keys(spec) if key.leaf != "pos_embed"]
        return [renamed for key in ours if (renamed := _renamed(key, spec.depth)).names]

    def computed(self, spec: ModelSpec) -> Params:
        return {"pos_embed": sinusoidal_positions(spec.width, spec.sizes.grid)}

    def check(self, spec: ModelSpec) -> None:
        if compat_of(spec) != "diffusers":
            raise BadInput(
                f"export to diffusers: the model has compat {compat_of(spec)!r}, and diffusers computes otherwise with its "
                "weights; load it with compat='diffusers' or set that in its spec"
            )
        plain = dit_spec(
            input_size=spec.image_shape[0], patch_size=spec.option("patch"), in_channels=spec.option("channels"),
            hidden_size=spec.width, depth=spec.depth, num_heads=spec.sizes.heads, num_classes=spec.classes,
            learn_sigma=spec.prediction.variance, compat="diffusers",
        )  # fmt: skip
        if spec != plain:
            raise BadInput("export to diffusers: expected a plain DiT, blocks 0..L-1 of mha and mlp(ratio=4.0), no adapters")

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        return {
            "_class_name": self.classes[0], "num_attention_heads": spec.sizes.heads,
            "attention_head_dim": spec.sizes.head_dim, "in_channels": spec.option("channels"),
            "out_channels": spec.out_channels, "num_layers": spec.depth, "sample_size": spec.image_shape[0],
            "patch_size": spec.option("patch"), "num_embeds_ada_norm": spec.classes,
            "norm_eps": NORM_EPS["norm2"]["diffusers"], **FIXED,
        }  # fmt: skip


# --- diffusers -----------------------------------------------------------------------------------------------------------


_STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_COPIED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
"""Embedders, of which every block has a copy; names within its `norm1.emb`."""

_IN_BLOCK = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}

FIXED = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
"""Settings under which that class is a DiT."""


def _renamed(key: Key, depth: int) -> Key:
    """A key of Facebook's file as one of diffusers': one tensor, three to join, a copy for every block, or none
    where diffusers has no such operator."""
    layer, _, leaf = key.names[0].rpartition(".")
    if layer in _COPIED:
        names = tuple(f"transformer_blocks.{i}.norm1.emb.{_COPIED[layer]}.{leaf}" for i in range(depth))
        return Key(key.leaf, names, key.turn, "copies")
    if match := BLOCK.fullmatch(layer):
        layers = _IN_BLOCK.get(match[2], ())
        return Key(key.leaf, tuple(f"transformer_blocks.{match[1]}.{name}.{leaf}" for name in layers), key.turn)
    return Key(key.leaf, (f"{_STEM[layer]}.{leaf}",), key.turn)
