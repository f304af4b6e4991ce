"""File formats of Flux: the authors' own, of one file, and the folders of Hugging Face diffusers.

The authors keep queries, keys and values in one tensor, in single blocks together with the MLP's first layer; diffusers
(class FluxTransformer2DModel) keeps each apart. In both a single block's output layer is one tensor, of columns for the
mixer, then for the MLP. What tensors are called stands in `graftax.backbones.flux.names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from graftax.backbones.config_json import WEIGHTS, shown
from graftax.backbones.flux.backbone import OWN
from graftax.backbones.flux.frame import axes_of, axes_text, default_axes
from graftax.backbones.flux.names import DOUBLE, DOUBLE_SCALES, QKV, SINGLE_SCALES, STEM, Names
from graftax.backbones.flux.variants import (
    INPUT_SIZE,
    PATCH,
    PREDICTION,
    TEXT_TOKENS,
    double_block,
    flux_frame,
    single_block,
)
from graftax.backbones.overrides import check_names
from graftax.backbones.state_dicts import width_of
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes, refuse
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Option, Sizes, op, sequential

KNOWN_HEAD = 128
"""Channels of a head in the published models, of which the rotary axes are known."""


class FluxLayout(Layout):
    """What both formats share.

    Attributes:
        column: of the tables of names.
        double: how names of blocks of two streams begin.
        single: likewise of one.
        scale: of single blocks' queries, whose length is a head's.
        marks: names by which the format is known.
        swap: whether the last modulation is scale and shift, not shift and scale.
    """

    column: ClassVar[int]
    double: ClassVar[str]
    single: ClassVar[str]
    marks: ClassVar[frozenset[str]]
    swap: ClassVar[bool] = False

    def keys(self, spec: ModelSpec) -> list[Key]:
        found: list[Key] = []
        for ours, names in STEM.items():
            if spec.option("guidance") or not ours.startswith("guidance"):
                found += _linear(ours, (names[self.column],), swap=self.swap and ours == "final/adaln")
        counts = {"double": 0, "single": 0}
        for i, block in enumerate(spec.blocks):
            start = f"{self._start(block.kind)}.{counts[block.kind]}."
            counts[block.kind] += 1
            keys = self._double() if block.kind == "double" else self._single(spec, block)
            found += [_under(key, f"blocks/{spec.block_key(i)}/", start) for key in keys]
        return found

    def _start(self, kind: str) -> str:
        return self.double if kind == "double" else self.single

    def _double(self) -> list[Key]:
        keys = [key for ours, names in DOUBLE.items() for key in _linear(ours, names[self.column])]
        return keys + _scales(DOUBLE_SCALES, self.column)

    def _single(self, spec: ModelSpec, block: BlockSpec) -> list[Key]:
        inner, hidden = spec.sizes.heads * spec.sizes.head_dim, _hidden_of(spec, block["mlp"])
        out = ("linear2", "proj_out")[self.column]
        keys = _linear("adaln", (("modulation.lin", "norm.linear")[self.column],))
        if self.column:
            keys += [*_linear("mixer/qkv", QKV), *_linear("mlp/fc1", ("proj_mlp",))]
        else:
            keys += _linear("mixer/qkv", ("linear1",), (0, 0, 3 * inner))
            keys += _linear("mlp/fc1", ("linear1",), (0, 3 * inner, 3 * inner + hidden))
        keys += [
            Key("mixer/proj/kernel", (f"{out}.weight",), "linear", part=(1, 0, inner)),
            Key("mlp/fc2/kernel", (f"{out}.weight",), "linear", part=(1, inner, inner + hidden)),
            Key("mlp/fc2/bias", (f"{out}.bias",)),
        ]
        return keys + _scales(SINGLE_SCALES, self.column)

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return self.marks <= shapes.keys()

    def read(self, shapes: Shapes, overrides: Mapping[str, Option]) -> ModelSpec:
        """What tensors and user say. Raises `BadInput`, naming tensors."""
        check_names(overrides, OWN)
        stem = {ours: names[self.column] for ours, names in STEM.items()}
        guidance = any(name.startswith(stem["guidance_embedder/fc1"]) for name in shapes)
        needed = [f"{name}.{leaf}" for ours, name in stem.items() for leaf in ("weight", "bias")
                  if guidance or not ours.startswith("guidance")]  # fmt: skip
        refuse("tensors missing", [name for name in needed if name not in shapes])
        d = width_of(shapes, [f"{stem[ours]}.bias" for ours in ("x_embedder", "text_embedder", "t_embedder/fc2")])
        sizes = self._sizes(shapes, overrides, d, guidance)
        frame = flux_frame(
            patch_size=PATCH, in_channels=_channels(shapes, stem["x_embedder"], stem["final/linear"]),
            text_width=_columns(shapes, stem["text_embedder"]), pooled_width=_columns(shapes, stem["pooled_embedder/fc1"]),
            guidance=guidance, rope_axes=_axes(overrides, sizes),
        )  # fmt: skip
        return ModelSpec("flux", sizes, frame, PREDICTION, self._blocks(shapes, sizes))

    def _sizes(self, shapes: Shapes, overrides: Mapping[str, Option], width: int, guidance: bool) -> Sizes:
        single = f"{self.single}.0.{SINGLE_SCALES['mixer/q_norm'][self.column]}"
        double = f"{self.double}.0.{DOUBLE_SCALES['attn/img/q_norm'][self.column]}"
        (name, k) = next(
            ((name, shapes[name][0]) for name in (double, single) if len(shapes.get(name, ())) == 1), (double, 0)
        )
        if k < 1 or width % k:
            raise BadInput(f"{name} {shapes.get(name)}: expected (k,), k a divisor of the width {width}")
        side = _count(overrides, "input_size", INPUT_SIZE)
        if side % PATCH:
            raise BadInput(f"input_size: got {side}, expected a multiple of {PATCH}")
        tokens = _count(overrides, "text_tokens", TEXT_TOKENS[guidance])
        return Sizes(width, width // k, k, (side // PATCH, side // PATCH), tokens)

    def _blocks(self, shapes: Shapes, sizes: Sizes) -> tuple[BlockSpec, ...]:
        """As many blocks as names count, with MLPs as wide as their tensors are."""
        found: list[BlockSpec] = []
        for i in range(_depth(shapes, self.double)):
            mlps = [
                _mlp(shapes, f"{self.double}.{i}.{DOUBLE[f'{name}/mlp/fc1'][self.column][0]}.bias", sizes.width)
                for name in ("img", "txt")
            ]
            found.append(double_block(sizes, None, *mlps))
        less = 0 if self.column else 3 * sizes.width
        for i in range(_depth(shapes, self.single)):
            name = f"{self.single}.{i}.{('linear1', 'proj_mlp')[self.column]}.bias"
            found.append(single_block(sizes, None, _mlp(shapes, name, sizes.width, less)))
        if not found:
            raise BadInput(f"tensors missing: {self.double}.0 and {self.single}.0, expected blocks of either kind")
        return tuple(found)

    def check(self, spec: ModelSpec) -> None:
        def plain(block: BlockSpec) -> BlockSpec:
            if block.kind == "double":
                return double_block(spec.sizes, None, *(_plain(block[f"{name}/mlp"]) for name in ("img", "txt")))
            return single_block(spec.sizes, None, _plain(block["mlp"])) if block.kind == "single" else block

        for i, block in enumerate(spec.blocks):
            if block.kind not in ("double", "single"):
                raise BadInput(f"export: blocks[{i}] is of the kind {block.kind!r}, but Flux files hold double and single")
            if (expected := plain(block)) != block:
                slot = next(slot for slot in block.slots if block[slot] != expected[slot])
                raise BadInput(
                    f"export: blocks[{i}].{slot} is {block[slot]}, but Flux files hold {expected[slot]}; save a folder"
                )
        kinds = [block.kind for block in spec.blocks]
        if kinds != sorted(kinds) or spec.program != sequential(spec.depth) or spec.adapters:
            raise BadInput(
                "export: expected double, then single blocks, run in order and without adapters; merge_lora(), or save a "
                "folder"
            )
        if not spec.option("pooled_width"):  # so is one that reads words
            raise BadInput("export: a Flux without a pooled text, but Flux files hold the weights of one; save a folder")
        if spec.option("patch") != PATCH:
            raise BadInput(f"export: the patch is {spec.option('patch')}, but Flux files hold {PATCH} alone")


class FluxFile(FluxLayout):
    """The authors' single file."""

    name = "flux"
    column = 0
    double, single = "double_blocks", "single_blocks"
    marks = frozenset({"img_in.weight", "txt_in.weight", "vector_in.in_layer.weight"})

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        return self.read(shapes, overrides)


class DiffusersFlux(FluxLayout):
    """A folder of diffusers' FluxTransformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-flux"
    folder = WEIGHTS
    classes = ("FluxTransformer2DModel",)
    pipelines = ("FluxPipeline",)
    column = 1
    double, single = "transformer_blocks", "single_transformer_blocks"
    marks = frozenset({"x_embedder.weight", "context_embedder.weight", "norm_out.linear.weight"})
    swap = True

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        axes = config.get("axes_dims_rope")
        told = {**overrides, "rope_axes": str(axes)[1:-1]} if isinstance(axes, list) else overrides
        spec = self.read(shapes, {**told, **overrides})
        for name, expected in self.config(spec).items():
            if (said := config.get(name)) not in (None, expected):
                raise BadInput(f"config.json {name}: {shown(said)}, expected {expected} by weights and overrides")
        return spec

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        mlps = {held for block in spec.blocks for _, held in block.ops if held.kind == "mlp"}
        if other := sorted(str(one) for one in mlps if one.option("ratio") != 4):
            raise BadInput(f"export to diffusers: got {other[0]}, expected mlp(ratio=4.0) everywhere")

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        kinds = [block.kind for block in spec.blocks]
        return {
            "_class_name": self.classes[0], "patch_size": 1, "in_channels": PATCH**2 * spec.option("channels"),
            "out_channels": PATCH**2 * spec.option("channels"), "num_layers": kinds.count("double"),
            "num_single_layers": kinds.count("single"), "attention_head_dim": spec.sizes.head_dim,
            "num_attention_heads": spec.sizes.heads, "joint_attention_dim": spec.option("text_width"),
            "pooled_projection_dim": spec.option("pooled_width"), "guidance_embeds": spec.option("guidance"),
            "axes_dims_rope": list(axes_of(spec)),
        }  # fmt: skip


LAYOUTS: tuple[Layout, ...] = (FluxFile(), DiffusersFlux())


# --- Keys ------------------------------------------------------------------------------------------------------------------


def _linear(ours: str, names: Names, part: tuple[int, int, int] | None = None, swap: bool = False) -> list[Key]:
    """Keys of a biased linear layer, of one tensor, a part of its rows, or several below each other."""
    weights, biases = (tuple(f"{name}.{leaf}" for name in names) for leaf in ("weight", "bias"))
    return [
        Key(f"{ours}/kernel", weights, "linear", part=part, swap=swap), Key(f"{ours}/bias", biases, part=part, swap=swap)
    ]  # fmt: skip


def _scales(table: Mapping[str, tuple[str, str]], column: int) -> list[Key]:
    return [Key(f"{ours}/scale", (names[column],)) for ours, names in table.items()]


def _under(key: Key, ours: str, theirs: str) -> Key:
    return Key(ours + key.leaf, tuple(theirs + name for name in key.names), key.turn, key.join, key.part, key.swap)


def _hidden_of(spec: ModelSpec, mlp: OpSpec) -> int:
    return round(mlp.option("ratio") * spec.width)


def _plain(mlp: OpSpec) -> OpSpec:
    """An MLP as it is, of whatever width, for another operator the usual one."""
    return mlp if mlp.kind == "mlp" else op("mlp")


# --- What tensors say ------------------------------------------------------------------------------------------------------


def _depth(shapes: Shapes, start: str) -> int:
    """Blocks whose names begin so."""
    number = re.compile(rf"{start}\.(0|[1-9][0-9]{{0,3}})\.")
    return 1 + max((int(match[1]) for name in shapes if (match := number.match(name))), default=-1)


def _mlp(shapes: Shapes, name: str, width: int, less: int = 0) -> OpSpec:
    """The MLP whose first layer has this bias behind `less` other numbers; where there is none, the usual one, so that it is
    the tensor that gets named later."""
    hidden = (shapes.get(name) or (0,))[0] - less
    return op("mlp", ratio=hidden / width) if hidden > 0 else op("mlp")


def _columns(shapes: Shapes, layer: str) -> int:
    shape = shapes[f"{layer}.weight"]
    if len(shape) != 2 or min(shape) < 1:
        raise BadInput(f"{layer}.weight {shape}: expected (out, in)")
    return shape[1]


def _channels(shapes: Shapes, first: str, last: str) -> int:
    """Channels of the latent, of which a token has `PATCH`^2 numbers each, in and out."""
    numbers, out = _columns(shapes, first), shapes[f"{last}.weight"][:1]
    if out != (numbers,) or numbers % PATCH**2:
        raise BadInput(
            f"{first}.weight {shapes[f'{first}.weight']} and {last}.weight {shapes[f'{last}.weight']}: expected (d, 4 c) "
            "and (4 c, d); models that see another image beside (Fill, Canny, Depth) are not read"
        )
    return numbers // PATCH**2


def _axes(overrides: Mapping[str, Option], sizes: Sizes) -> str:
    """A head's rotary channels: as user or config say, else those of the published models."""
    if "rope_axes" not in overrides and sizes.head_dim != KNOWN_HEAD:
        raise BadInput(
            f"rope_axes: not stored in tensors and heads of {sizes.head_dim} are no published Flux's; give rope_axes=..., "
            "(16, 56, 56) in these"
        )
    return axes_text(overrides.get("rope_axes", default_axes(KNOWN_HEAD)), sizes)


def _count(overrides: Mapping[str, Option], name: str, usual: int) -> int:
    value = overrides.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{name}: got {value!r}, expected a positive integer")
    return value
