"""LightningDiT (Yao et al., arXiv 2501.01423): published variants as specs."""

from __future__ import annotations

from collections.abc import Mapping

from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, OpSpec, Prediction, op

SIZES = {"B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width, heads."""

LATENTS: Mapping[int, tuple[int, int]] = {1: (16, 32), 2: (32, 4)}
"""Patch -> side and channels of the latents of 256 pixels: VA-VAE's (f16d32), and those of Stable Diffusion's VAE, for the
paper's ablations."""

VARIANTS = tuple(f"LightningDiT-{size}/{patch}" for size in SIZES for patch in LATENTS)


def lightningdit_spec(
    *, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, in_channels: int = 32,
    num_classes: int = 1000, learn_sigma: bool = False, swiglu: bool = True, rope: bool = True, rmsnorm: bool = True,
    qk_norm: bool = False, shift: bool = True,
) -> ModelSpec:  # fmt: skip
    """Spec of a LightningDiT.

    `input_size` is the side of the latent image. Switches, as in the authors' code: `swiglu` in place of a GELU MLP; `rope`,
    rotary positions; `rmsnorm`, norms of tokens and of queries and keys are RMSNorms; `qk_norm`, queries and keys are
    normalised; `shift` false, blocks have no shifts (`wo_shift`). Raises `BadInput` on sizes that do not go together.
    """
    sizes = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=depth,
        in_channels=in_channels, num_classes=num_classes,
    )  # fmt: skip
    norm = op("rms_norm", affine=True) if rmsnorm else op("layer_norm", affine=False)
    held = {
        "adaln": op("adaln"), "norm1": norm, "mixer": attention(rope, rmsnorm, qk_norm), "norm2": norm,
        "mlp": op("swiglu", ratio=int(8 * hidden_size / 3) / hidden_size, bias=True) if swiglu else op("mlp"),
    }  # fmt: skip
    frame = (
        ("patch", patch_size), ("channels", in_channels), ("classes", num_classes), ("compat", "dit"), ("rope", rope),
        ("final_rms", rmsnorm),
    )  # fmt: skip
    block = resolve("dit" if shift else "dit_no_shift", sizes, held)
    return ModelSpec("lightningdit", sizes, frame, prediction(learn_sigma), (block,) * depth)


def prediction(learn_sigma: bool) -> Prediction:
    """A velocity, data minus noise; the second half of the output of those with `learn_sigma` has no meaning."""
    return Prediction("velocity", "data", variance=learn_sigma)


def attention(rope: bool, rmsnorm: bool, qk_norm: bool) -> OpSpec:
    """The attention of a model with these switches."""
    if not rope and not qk_norm:
        return op("mha")
    return op("mha_normed", qk_norm=("rms" if rmsnorm else "layer_affine") if qk_norm else "none", bias="all")


def variant(name: str, num_classes: int = 1000) -> ModelSpec:
    """Spec of a published model by name, "LightningDiT-XL/1", for 256 pixels. Raises `BadInput` on an unknown name."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    size, _, patch = name.removeprefix("LightningDiT-").partition("/")
    depth, width, heads = SIZES[size]
    side, channels = LATENTS[int(patch)]
    return lightningdit_spec(
        input_size=side, patch_size=int(patch), hidden_size=width, depth=depth, num_heads=heads, in_channels=channels,
        num_classes=num_classes,
    )  # fmt: skip
