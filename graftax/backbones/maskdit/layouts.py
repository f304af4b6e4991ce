"""MaskDiT's file format: TREAD's, with a decoder and a label embedding that is a linear map of one-hot classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from graftax.backbones.dit.layouts import PREFIX, STEM
from graftax.backbones.dit.relatives.layouts import DECODER, Relative, TreadFile
from graftax.backbones.maskdit.backbone import OWN
from graftax.backbones.maskdit.decoder import PATHS, decoder_of
from graftax.backbones.state_dicts import block_keys
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes
from graftax.ops.base import TorchKey, linear_keys
from graftax.spec import ModelSpec, Option, Options

HEADS = {512: 16}
"""Width of the published decoder -> its heads, which no tensor tells."""

_LABELS = TorchKey("y_embedder/embedding", "y_embedder.embedding_table.weight", "linear")
_DECODER = (
    *linear_keys("decoder/adaln", "decoder_layer.adaLN_modulation.1"),
    *linear_keys("decoder/linear", "decoder_layer.linear"),
    TorchKey("decoder/pos_embed", "decoder_pos_embed", "same"), TorchKey("decoder/mask_token", "mask_token", "same"),
)  # fmt: skip


class MaskDiTFile(TreadFile):
    """The "ema" of a training checkpoint, the network called `model`."""

    name = "maskdit"
    files = "MaskDiT"
    backbone = "maskdit"
    overrides = OWN
    stem = (*(_LABELS if key.leaf == _LABELS.leaf else key for key in STEM), *_DECODER)
    others = ("decoder_blocks.",)

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return Relative.fits(self, shapes, config) and DECODER in shapes

    def class_count(self, shapes: Shapes) -> int:
        shape = shapes["y_embedder.embedding_table.weight"]
        if len(shape) != 2 or shape[1] < 1:
            raise BadInput(f"y_embedder.embedding_table.weight {shape}: expected (d, classes)")
        return shape[1]

    def images(self, shapes: Shapes, channels: int, overrides: Mapping[str, Option]) -> Options:
        shape = shapes[DECODER]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("decoder_blocks.")})
        if len(shape) != 2 or not depth:
            raise BadInput(f"{DECODER} {shape}: expected (decoder's width, d), and decoder_blocks")
        heads = overrides.get("decoder_heads", HEADS.get(shape[0]))
        if not isinstance(heads, int):
            raise BadInput(f"decoder_heads: not stored in tensors and width {shape[0]} is not the published one's; give it")
        decoder = (("decoder_depth", depth), ("decoder_width", shape[0]), ("decoder_heads", heads))
        return (("channels", channels), *decoder)

    def keys(self, spec: ModelSpec) -> list[Key]:
        found = []
        for key in block_keys(decoder_of(spec), PREFIX):
            number, rest = key.leaf.removeprefix("blocks/").split("/", 1)
            leaf = f"{PATHS.format(int(number))}/{rest}"
            found.append(dataclasses.replace(key, leaf=leaf, names=tuple(f"decoder_{name}" for name in key.names)))
        return super().keys(spec) + found


LAYOUTS: tuple[Layout, ...] = (MaskDiTFile(),)
