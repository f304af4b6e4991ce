"""File formats of DiT's relatives: its names, and what each has beside them.

    sit    Ma et al., arXiv 2401.08740: nothing tells it from a DiT but `layout="sit"`
    redi   Kouzelis et al., arXiv 2504.16064: as SiT, of more channels
    repa   Yu et al., arXiv 2410.06940, also REPA-E (arXiv 2504.10483): `projectors`, statistics `bn` of the latents
    sra    Jiang et al., arXiv 2505.02831: a head `ap_head`
    reg    Wu et al., arXiv 2507.01467: a class token
    tread  Krause et al., arXiv 2501.04765: names behind `model.`, EDM's preconditioner

Heads of training losses stand beside the model and are left out (`graftax.checkpoint.read_beside`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

from graftax.backbones.dit.joint import channels_of_token
from graftax.backbones.dit.layouts import STEM, DiffusersDiT, DiTFile, is_dit
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes
from graftax.ops.base import TorchKey, linear_keys
from graftax.spec import ModelSpec, Option, Options, Prediction

T = TypeVar("T")
LATENTS = 4
"""Channels of the latents of ReDi's models; the others are features."""

_LEGACY = re.compile(r"decoder_blocks\.(\d+)\.(.+)")
_NORMS = {f"{ours}.": f"{theirs}." for ours, theirs in (("attn.ln_q", "attn.q_norm"), ("attn.ln_k", "attn.k_norm"))}
"""Norms of queries and keys as our operators name them, and as these files do."""


DECODER = "decoder_layer.linear.weight"
"""What MaskDiT's files, which else look like TREAD's, have."""


class Relative(DiTFile):
    """Base: DiT's names, but for the norms of queries and keys."""

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        return super().spec({_replaced(name, inverse=True): shape for name, shape in shapes.items()}, config, overrides)

    def keys(self, spec: ModelSpec) -> list[Key]:
        return [dataclasses.replace(key, names=tuple(map(_replaced, key.names))) for key in super().keys(spec)]


class SiTFile(Relative):
    """SiT's state dict, flat or as the "ema" of a training checkpoint: t is 0 at noise."""

    name = "sit"
    files = "SiT"
    prediction = Prediction("velocity", "data")


class ReDiFile(SiTFile):
    """ReDi's: latents of 4 channels, then components of DINOv2's features."""

    name = "redi"
    files = "ReDi"
    entry = "ema"
    joint = True

    def images(self, shapes: Shapes, channels: int, overrides: Mapping[str, Option]) -> Options:
        if channels <= LATENTS:
            raise BadInput(f"x_embedder.proj.weight: {channels} channels, expected more than the {LATENTS} of the latents")
        return (("channels", channels), ("features", channels - LATENTS))


class RepaFile(Relative):
    """REPA's and REPA-E's, with their projectors; also those of the first release, which counted its `decoder_blocks`
    anew behind the aligned one. t is 0 at data."""

    name = "repa"
    files = "REPA"
    prediction = Prediction("velocity", "noise", variance=False)
    beside = ("projectors.", "bn.")

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return is_dit(shapes, config) and any(name.startswith(self.beside) for name in shapes)

    def parted(self, tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        own, beside = super().parted(tensors)
        before = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
        return {_LEGACY.sub(lambda m: f"blocks.{before + int(m[1])}.{m[2]}", name): one for name, one in own.items()}, beside


class SraFile(RepaFile):
    """SRA's, with its head."""

    name = "sra"
    files = "SRA"
    beside = ("ap_head.",)


class RegFile(RepaFile):
    """REG's: REPA's with a class token."""

    name = "reg"
    files = "REG"
    block = "dit_token"
    tokens = 1
    joint = True
    entry = "ema"
    stem = (
        *STEM, *linear_keys("class_token/linear", "cls_projectors2"),
        *(TorchKey(f"class_token/norm/{ours}", f"wg_norm.{theirs}", "same")
          for ours, theirs in (("scale", "weight"), ("bias", "bias"))),
        *linear_keys("class_out", "final_layer.linear_cls"),
    )  # fmt: skip

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return is_dit(shapes, config) and "cls_projectors2.weight" in shapes

    def images(self, shapes: Shapes, channels: int, overrides: Mapping[str, Option]) -> Options:
        shape = shapes["cls_projectors2.weight"]
        if len(shape) != 2:
            raise BadInput(f"cls_projectors2.weight {shape}: expected (d, numbers of the class token)")
        patch = shapes["x_embedder.proj.weight"][-1]
        pixels = (shapes["pos_embed"][1] - 1) * patch**2
        features = channels_of_token(shape[1], pixels)
        return (("channels", channels + features), ("features", features), ("token", shape[1]))


class TreadFile(Relative):
    """TREAD's: the network within EDM's preconditioner, which is called `model`."""

    name = "tread"
    files = "TREAD"
    prediction = Prediction("edm", "log_sigma", variance=False)
    prefix = "model."
    entry = "ema"

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return super().fits(shapes, config) and DECODER not in shapes


def _replaced(name: str, inverse: bool = False) -> str:
    """A tensor's name in these files from that in ours, or the `inverse`."""
    for ours, theirs in _NORMS.items():
        name = name.replace(theirs, ours) if inverse else name.replace(ours, theirs)
    return name


LAYOUTS: tuple[Layout, ...] = (
    DiTFile(), DiffusersDiT(), RegFile(), RepaFile(), SraFile(), SiTFile(), ReDiFile(), TreadFile()
)  # fmt: skip
"""DiT's own, those that tensors tell from it, then those that they do not: of these `layout` must name one, but TREAD, whose
tensors have a prefix."""
