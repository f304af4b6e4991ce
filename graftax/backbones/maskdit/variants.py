"""MaskDiT's published size as a spec."""

from __future__ import annotations

from graftax.backbones.dit.variants import SIZES, dit_spec
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Prediction

VARIANTS = tuple(f"MaskDiT-{size}/2" for size in SIZES)


def maskdit_spec(
    *, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, decoder_width: int = 512,
    decoder_depth: int = 8, decoder_heads: int = 16, in_channels: int = 4, num_classes: int = 1000,
) -> ModelSpec:  # fmt: skip
    """Spec of a MaskDiT: a DiT's, and its decoder's sizes. Raises `BadInput` on sizes that do not go together."""
    spec = dit_spec(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, depth=depth, num_heads=num_heads,
        in_channels=in_channels, num_classes=num_classes,
    )  # fmt: skip
    spec = spec.replace(backbone="maskdit", prediction=Prediction("edm", "log_sigma", variance=False))
    return spec.with_frame(decoder_width=decoder_width, decoder_depth=decoder_depth, decoder_heads=decoder_heads)


def variant(name: str, resolution: int = 256, classes: int = 1000) -> ModelSpec:
    """Spec of a model by name, "MaskDiT-XL/2" of latents of resolution / 8. Raises `BadInput` on an unknown name."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    depth, width, heads = SIZES[name.removeprefix("MaskDiT-").removesuffix("/2")]
    return maskdit_spec(
        input_size=resolution // 8, patch_size=2, hidden_size=width, depth=depth, num_heads=heads, num_classes=classes
    )  # fmt: skip
