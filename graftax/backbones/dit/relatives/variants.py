"""DiT's relatives at their published sizes, as specs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from graftax.backbones.dit.joint import channels_of_token
from graftax.backbones.dit.variants import SIZES, dit_spec, variant
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Prediction


@dataclass(frozen=True)
class Relative:
    """What sets a family apart from DiT.

    Attributes:
        prediction: what output and time mean.
        features: channels of features beside those of the latents.
        token: numbers of the class token.
    """

    prediction: Prediction
    features: int = 0
    token: int = 0


_ALIGNED = Prediction("velocity", "noise", variance=False)

RELATIVES = {
    "SiT": Relative(Prediction("velocity", "data")),
    "REPA": Relative(_ALIGNED),
    "SRA": Relative(_ALIGNED),
    "REG": Relative(_ALIGNED, token=768),
    "ReDi": Relative(Prediction("velocity", "data", variance=False), features=8),
    "TREAD": Relative(Prediction("edm", "log_sigma", variance=False)),
}
"""Families by name."""

VARIANTS = tuple(f"{family}-{size}/2" for family in RELATIVES for size in SIZES)


def relative(name: str, resolution: int = 256, num_classes: int = 1000) -> ModelSpec:
    """Spec of a published model by name, "SiT-XL/2" at 256 or 512 pixels. Raises `BadInput` on others."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    family, _, size = name.partition("-")
    return as_relative(variant(f"DiT-{size}", resolution, num_classes), RELATIVES[family])


def as_relative(spec: ModelSpec, kind: Relative) -> ModelSpec:
    """A DiT's spec as one of a family: its latents and blocks, and what sets the family apart."""
    rows, columns, channels = spec.image_shape
    if kind.features:
        spec = spec.with_frame(channels=channels + kind.features, features=kind.features)
    if kind.token:
        features = channels_of_token(kind.token, rows * columns)
        sizes = dataclasses.replace(spec.sizes, text=1)
        blocks = tuple(resolve("dit_token", sizes, dict(block.ops)) for block in spec.blocks)
        spec = spec.replace(sizes=sizes, blocks=blocks)
        spec = spec.with_frame(channels=channels + features, features=features, token=kind.token)
    return spec.replace(prediction=kind.prediction)


def repa_of_f16(size: str = "XL") -> ModelSpec:
    """REPA-E's models of latents 16 x 16 x 32 (arXiv 2504.10483): REPA's with patches of 1."""
    depth, width, heads = SIZES[size]
    spec = dit_spec(input_size=16, patch_size=1, in_channels=32, hidden_size=width, depth=depth, num_heads=heads)
    return as_relative(spec, RELATIVES["REPA"])
