"""LightningDiT's files: the authors' state dict (hustvl/LightningDiT, `models/lightningdit.py`).

Names are DiT's, but for the gated channel mixer, whose first two layers are one tensor, the norms of queries and keys, and
rotary tables that files keep, though everybody computes them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from graftax.backbones.dit.frame import grid_rope
from graftax.backbones.dit.layouts import AS_WIDE_AS_THE_MODEL, HEADS, PREFIX, STEM, classes_of
from graftax.backbones.lightningdit.backbone import OWN
from graftax.backbones.lightningdit.variants import prediction
from graftax.backbones.overrides import check_names
from graftax.backbones.state_dicts import (
    Slots,
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
from graftax.models.layout import Config, Key, Layout, Shape, Shapes
from graftax.ops.base import TorchKey
from graftax.spec import BlockSpec, ModelSpec, Option, Sizes, op

T = TypeVar("T")

FINAL_NORM = TorchKey("final/scale", "final_layer.norm_final.weight", "same")
TABLES = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
"""Cosines and sines of rotary positions, every one twice, for both channels of a pair: (n, k)."""

WRAPPER = "module."
"""Before all names in checkpoints of data-parallel training."""

_NAMES = ((r"\.attn\.ln_([qk])\.", r".attn.\1_norm."), (r"\.mlp\.w[12]\.", ".mlp.w12."), (r"\.mlp\.out\.", ".mlp.w3."))
"""Our operators' names, and theirs."""


class LightningDiTFile(Layout):
    """The authors' state dict, flat or as the "ema" of a training checkpoint, with grafted operators where a model has
    them. Files without any of LightningDiT's parts but norms of queries and keys look like a REPA's: name the layout."""

    name = "lightningdit"
    entry = "ema"

    def parted(self, tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        return super().parted({name.removeprefix(WRAPPER): one for name, one in tensors.items()})

    def fits(self, shapes: Shapes, config: Config) -> bool:
        stem = {"x_embedder.proj.weight", "y_embedder.embedding_table.weight"}
        marks = {FINAL_NORM.name, TABLES[0], "blocks.0.mlp.w12.weight"}
        return not config and stem <= shapes.keys() and bool(marks & shapes.keys())

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        rope = TABLES[0] in shapes
        if overrides.get("rope", rope) is not rope:
            there = "has" if rope else "has no"
            raise BadInput(f"override rope={overrides['rope']!r}: the file {there} {TABLES[0]}")
        own = {name: shape for name, shape in shapes.items() if name not in TABLES}
        stem = [key.name for key in STEM] + [FINAL_NORM.name] * (FINAL_NORM.name in shapes)
        try:
            slots = by_slot(_ours(own), PREFIX, stem, ("1.bias", "1.weight"))
            return self._spec(shapes, slots, rope, overrides)
        except BadInput as error:
            raise BadInput(_theirs(str(error))) from None

    def _spec(self, shapes: Shapes, slots: list[Slots], rope: bool, overrides: Mapping[str, Option]) -> ModelSpec:
        d = width_of(shapes, AS_WIDE_AS_THE_MODEL)
        p, c, learn_sigma = patches_of(shapes)
        heads = heads_of(d, overrides, HEADS, "LightningDiT")
        sizes = Sizes(d, heads, d // heads, grid_of(shapes))
        frame = (
            ("patch", p), ("channels", c), ("classes", classes_of(shapes)), ("compat", "dit"), ("rope", rope),
            ("final_rms", FINAL_NORM.name in shapes),
        )  # fmt: skip
        unshifted = slots[0]["adaln"].get("1.bias") == (4 * d,)
        blocks = blocks_of("dit_no_shift" if unshifted else "dit", sizes, slots, PREFIX, overrides)
        blocks = tuple(map(_placed, blocks)) if rope else blocks
        spec = ModelSpec("lightningdit", sizes, frame, prediction(learn_sigma), blocks)
        check_operators(self, spec, shapes, PREFIX)
        return spec

    def keys(self, spec: ModelSpec) -> list[Key]:
        stem = (*STEM, FINAL_NORM) if spec.option("final_rms") else STEM
        return [*map(Key.of, stem), *(_renamed(spec, key) for key in block_keys(spec, PREFIX))]

    def constants(self, spec: ModelSpec) -> dict[str, np.ndarray]:
        if not spec.option("rope"):
            return {}
        return dict(zip(TABLES, (np.repeat(np.asarray(table), 2, axis=1) for table in grid_rope(spec.sizes)), strict=True))

    def check(self, spec: ModelSpec) -> None:
        check_plain_program(spec, spec.blocks[0].kind, "LightningDiT")
        if (expected := prediction(spec.prediction.variance)) != spec.prediction:
            raise BadInput(f"export: the model has {spec.prediction}, but LightningDiT files hold {expected}")
        for i, block in enumerate(spec.blocks):
            if spec.option("rope") and block["mixer"].kind == "mha":
                raise BadInput(f"export: blocks[{i}].mixer is mha, which LightningDiT's code would give rotary positions")


LAYOUTS: tuple[Layout, ...] = (LightningDiTFile(),)


def _placed(block: BlockSpec) -> BlockSpec:
    """A block whose plain attention is the one that reads rotary positions."""
    return block.with_op("mixer", op("mha_normed", qk_norm="none", bias="all")) if block["mixer"].kind == "mha" else block


def _renamed(spec: ModelSpec, key: Key) -> Key:
    """A key of DiT's names as one of theirs; the two layers of a gate are the halves of one tensor's rows."""
    (name,) = key.names
    renamed = dataclasses.replace(key, names=(_theirs(name),))
    if (layer := re.search(r"\.mlp\.w([12])\.", name)) is None:
        return renamed
    ratio = spec.blocks[int(name.split(".")[1])]["mlp"].option("ratio")
    half, second = round(ratio * spec.width), layer[1] == "2"
    return dataclasses.replace(renamed, part=(0, half * second, half * (1 + second)))


def _theirs(text: str) -> str:
    for ours, theirs in _NAMES:
        text = re.sub(ours, theirs, text)
    return text


def _ours(shapes: Shapes) -> dict[str, Shape]:
    """Shapes under our operators' names; a tensor of both layers of a gate as two."""
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        name = re.sub(r"\.attn\.([qk])_norm\.", r".attn.ln_\1.", name).replace(".mlp.w3.", ".mlp.out.")
        if ".mlp.w12." in name:
            rows, *rest = shape or (0,)
            found |= {name.replace("w12", layer): (rows // 2, *rest) for layer in ("w1", "w2")}
        else:
            found[name] = shape
    return found
