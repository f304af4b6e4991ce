"""File formats of AuraFlows: the authors' own, of one file, and the folders of Hugging Face diffusers.

The authors' names (cloneofsimo/minRF, `advanced/mmdit.py`) and diffusers' (class AuraFlowTransformer2DModel) stand side by
side in the tables below: the same tensors, but for the last modulation, of which diffusers has scale before shift. Queries,
keys and values are tensors of their own in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from graftax.backbones.auraflow.backbone import OWN
from graftax.backbones.auraflow.variants import HEADS, REGISTERS, TEXT_TOKENS, WIDTH, auraflow_spec, hidden_width, own_side
from graftax.backbones.config_json import WEIGHTS, config_size
from graftax.backbones.overrides import check_names
from graftax.backbones.state_dicts import heads_of, width_of
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes, refuse
from graftax.spec import ModelSpec, Option, sequential

Names = tuple[str, str]
"""Of tensors, the authors' and diffusers', of several with spaces between."""

STEM: dict[str, Names] = {
    "x_embedder/kernel": ("init_x_linear.weight", "pos_embed.proj.weight"),
    "x_embedder/bias": ("init_x_linear.bias", "pos_embed.proj.bias"),
    "pos_embed": ("positional_encoding", "pos_embed.pos_embed"),
    "registers": ("register_tokens", "register_tokens"),
    "t_embedder/fc1/kernel": ("t_embedder.mlp.0.weight", "time_step_proj.linear_1.weight"),
    "t_embedder/fc1/bias": ("t_embedder.mlp.0.bias", "time_step_proj.linear_1.bias"),
    "t_embedder/fc2/kernel": ("t_embedder.mlp.2.weight", "time_step_proj.linear_2.weight"),
    "t_embedder/fc2/bias": ("t_embedder.mlp.2.bias", "time_step_proj.linear_2.bias"),
    "text_embedder/kernel": ("cond_seq_linear.weight", "context_embedder.weight"),
    "final/adaln/kernel": ("modF.1.weight", "norm_out.linear.weight"),
    "final/linear/kernel": ("final_linear.weight", "proj_out.weight"),
}
SWAPPED = "final/adaln/kernel"
"""What diffusers stores with its halves in the other order."""

GROUPS: dict[str, Names] = {
    "aura_joint": ("double_layers", "joint_transformer_blocks"),
    "aura_single": ("single_layers", "single_transformer_blocks"),
}
"""How the names of blocks begin, by kind; each kind is counted by itself."""


def _mlp(ours: str, theirs: str, diffusers: str) -> dict[str, Names]:
    pairs = {"w1": ("c_fc1", "linear_1"), "w2": ("c_fc2", "linear_2"), "out": ("c_proj", "out_projection")}
    return {
        f"{ours}/{leaf}/kernel": (f"{theirs}.{first}.weight", f"{diffusers}.{second}.weight")
        for leaf, (first, second) in pairs.items()
    }


def _attention(ours: str, theirs: str, diffusers: str, out: str) -> dict[str, Names]:
    """`theirs` and `diffusers`: names of projections, {} for the letter of queries, keys or values."""
    first, second = (" ".join(f"attn.{name.format(letter)}.weight" for letter in "qkv") for name in (theirs, diffusers))
    return {
        f"{ours}/qkv/kernel": (first, second),
        f"{ours}/proj/kernel": (f"attn.{theirs.format('o')}.weight", f"attn.{out}.weight"),
    }


BLOCKS: dict[str, dict[str, Names]] = {
    "aura_joint": {
        "img/adaln/kernel": ("modX.1.weight", "norm1.linear.weight"),
        "txt/adaln/kernel": ("modC.1.weight", "norm1_context.linear.weight"),
        **_attention("attn/txt", "w1{}", "add_{}_proj", "to_add_out"),
        **_attention("attn/img", "w2{}", "to_{}", "to_out.0"),
        **_mlp("img/mlp", "mlpX", "ff"),
        **_mlp("txt/mlp", "mlpC", "ff_context"),
    },
    "aura_single": {
        "adaln/kernel": ("modCX.1.weight", "norm1.linear.weight"),
        **_attention("mixer", "w1{}", "to_{}", "to_out.0"),
        **_mlp("mlp", "mlp", "ff"),
    },
}
"""The tensors of a block by our leaf."""

_AS_WIDE_AS_THE_MODEL = ("x_embedder/bias", "registers", "pos_embed", "t_embedder/fc2/bias", "final/linear/kernel")


class _AuraFlow(Layout):
    """What the formats share.

    Attributes:
        column: of the tables above, whose names it has.
    """

    column: ClassVar[int] = 0

    def sized(self, shapes: Shapes, overrides: Mapping[str, Option], patch: int, heads: int) -> ModelSpec:
        """The spec whose tensors these are. Raises `BadInput` naming those that are missing or of impossible shapes."""
        found = self._stem(shapes)
        numbers, positions = found["x_embedder/kernel"][1], found["pos_embed"][1]
        if numbers % patch**2 or not numbers:
            name = self._name("x_embedder/kernel")
            raise BadInput(f"{name}: {numbers} numbers to a token, expected a multiple of {patch**2}")
        if math.isqrt(positions) ** 2 != positions or not positions:
            raise BadInput(f"{self._name('pos_embed')}: {positions} positions, expected a square number")
        depths = {kind: _depth(shapes, names[self.column]) for kind, names in GROUPS.items()}
        told: dict[str, Any] = {"input_size": own_side(positions) * patch, "text_tokens": TEXT_TOKENS}
        told |= {name: value for name, value in overrides.items() if name in told}
        return auraflow_spec(
            patch_size=patch, in_channels=numbers // patch**2, joint=depths["aura_joint"], single=depths["aura_single"],
            hidden_size=self.width(shapes), num_heads=heads, positions=positions, registers=found["registers"][1],
            text_width=found["text_embedder/kernel"][1], mlp_hidden=self._hidden(shapes), **told,
        )  # fmt: skip

    def width(self, shapes: Shapes) -> int:
        """Channels d of a token."""
        self._stem(shapes)
        return width_of(shapes, [self._name(leaf) for leaf in _AS_WIDE_AS_THE_MODEL])

    def keys(self, spec: ModelSpec) -> list[Key]:
        numbers = dict.fromkeys(GROUPS, 0)
        keys = [
            Key(leaf, (self._name(leaf),), "linear" if leaf.endswith("kernel") else "same", swap=self._swaps(leaf))
            for leaf in STEM
        ]
        for i, block in enumerate(spec.blocks):
            start = f"{GROUPS[block.kind][self.column]}.{numbers[block.kind]}."
            numbers[block.kind] += 1
            for leaf, names in BLOCKS[block.kind].items():
                theirs = tuple(start + name for name in names[self.column].split())
                keys.append(Key(f"blocks/{spec.block_key(i)}/{leaf}", theirs, "linear"))
        return keys

    def check(self, spec: ModelSpec) -> None:
        if spec.program != sequential(spec.depth) or spec.adapters:
            raise BadInput("export: AuraFlow files hold no program and no adapters, and this model has one; save a folder")
        if spec != _plain(spec):
            raise BadInput(
                "export: expected a plain AuraFlow, aura_joint blocks of joint_mha and swiglu, then aura_single blocks of "
                "mha_normed and swiglu; save a graftax folder"
            )

    def _name(self, leaf: str) -> str:
        return STEM[leaf][self.column]

    def _swaps(self, leaf: str) -> bool:
        return leaf == SWAPPED and self.column == 1

    def _stem(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Shapes outside of the blocks by leaf."""
        names = {leaf: self._name(leaf) for leaf in STEM}
        refuse("tensors missing", [name for name in names.values() if name not in shapes])
        ranks = {leaf: 3 if leaf in ("pos_embed", "registers") else 1 + leaf.endswith("kernel") for leaf in STEM}
        found = {leaf: shapes[name] for leaf, name in names.items()}
        wrong = [leaf for leaf, rank in ranks.items() if len(found[leaf]) != rank]
        refuse("tensors mis-shaped", [f"{names[leaf]} {found[leaf]} (expected {ranks[leaf]} axes)" for leaf in wrong])
        return found

    def _hidden(self, shapes: Shapes) -> int:
        """Width inside of the channel mixers, of the first block's."""
        for kind, leaf in (("aura_joint", "img/mlp/w1/kernel"), ("aura_single", "mlp/w1/kernel")):
            name = f"{GROUPS[kind][self.column]}.0.{BLOCKS[kind][leaf][self.column]}"
            if shapes.get(name):
                return shapes[name][0]
        raise BadInput(f"tensors missing: {name}")


class AuraFlowFile(_AuraFlow):
    """The authors' state dict, its names with the prefix or without, also beside other networks, which are not read."""

    name = "auraflow"
    prefix = "model."

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return not config and {self._name("x_embedder/kernel"), self._name("text_embedder/kernel")} <= shapes.keys()

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        return self.sized(shapes, overrides, 2, heads_of(self.width(shapes), overrides, {WIDTH: HEADS}, "AuraFlow"))


class DiffusersAuraFlow(_AuraFlow):
    """A folder of diffusers' AuraFlowTransformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-auraflow"
    column = 1
    folder = WEIGHTS
    classes = ("AuraFlowTransformer2DModel",)
    pipelines = ("AuraFlowPipeline",)

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return config.get("_class_name") in self.classes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        """`sample_size` is not believed: diffusers draws 1024 pixels whatever it says."""
        check_names(overrides, OWN)
        spec = self.sized(shapes, overrides, config_size(config, "patch_size"), config_size(config, "num_attention_heads"))
        for name, value in self.config(spec).items():
            if name not in ("_class_name", "sample_size") and config_size(config, name) != value:
                raise BadInput(f"config.json {name}: {config[name]}, but the weights say {value}")
        return spec

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        found, expected = (_mlp_hidden(spec), spec.option("registers")), (hidden_width(spec.width), REGISTERS)
        if found != expected:
            raise BadInput(f"export to diffusers: got {found} for hidden width and registers, expected its own {expected}")

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        kinds = [block.kind for block in spec.blocks]
        return {
            "_class_name": self.classes[0], "sample_size": spec.image_shape[0], "patch_size": spec.option("patch"),
            "in_channels": spec.option("channels"), "out_channels": spec.out_channels,
            "num_mmdit_layers": kinds.count("aura_joint"), "num_single_dit_layers": kinds.count("aura_single"),
            "num_attention_heads": spec.sizes.heads, "attention_head_dim": spec.sizes.head_dim,
            "joint_attention_dim": spec.option("text_width"), "caption_projection_dim": spec.width,
            "pos_embed_max_size": spec.option("positions"),
        }  # fmt: skip


LAYOUTS: tuple[Layout, ...] = (AuraFlowFile(), DiffusersAuraFlow())


def _depth(shapes: Shapes, group: str) -> int:
    """Number of blocks whose names begin with `group`."""
    number = re.compile(rf"{re.escape(group)}\.(0|[1-9][0-9]{{0,2}})\.")
    return 1 + max((int(match[1]) for name in shapes if (match := number.match(name))), default=-1)


def _mlp_hidden(spec: ModelSpec) -> int:
    """Width inside of the first channel mixer that is gated; 1 where none is."""
    ratios = [op.option("ratio") for block in spec.blocks for _, op in block.ops if op.kind == "swiglu"]
    return round(ratios[0] * spec.width) if ratios else 1


def _plain(spec: ModelSpec) -> ModelSpec:
    """The AuraFlow of these sizes as its authors have it."""
    kinds = [block.kind for block in spec.blocks]
    return auraflow_spec(
        input_size=spec.image_shape[0], joint=kinds.count("aura_joint"), single=kinds.count("aura_single"),
        hidden_size=spec.width, num_heads=spec.sizes.heads, positions=spec.option("positions"),
        patch_size=spec.option("patch"), in_channels=spec.option("channels"), text_width=spec.option("text_width"),
        text_tokens=spec.sizes.text - spec.option("registers"), registers=spec.option("registers"),
        mlp_hidden=_mlp_hidden(spec),
    )  # fmt: skip
