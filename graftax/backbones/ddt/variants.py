"""DDT (Wang et al., arXiv 2504.05741): published variants as specs."""

from __future__ import annotations

from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.blocks.ddt import KINDS
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Prediction, Sizes, op

SIZES = {"B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width, heads."""

ENCODER_BLOCKS = {768: 8, 1024: 20, 1152: 22}
"""Width -> blocks of the encoder, of the authors' best models; no tensor tells."""

RESOLUTIONS = (256, 512)
VARIANTS = tuple(f"DDT-{size}/2" for size in SIZES)
PREDICTION = Prediction("velocity", "data", variance=False)


def ddt_spec(
    *, input_size: int, hidden_size: int, depth: int, num_heads: int, encoder_blocks: int, patch_size: int = 2,
    in_channels: int = 4, num_classes: int = 1000,
) -> ModelSpec:  # fmt: skip
    """Spec of a DDT of `depth` blocks, the first `encoder_blocks` of them the encoder's.

    `input_size` is the side of the latent image that it draws unless told otherwise. Raises `BadInput` on sizes that do not
    go together.
    """
    sizes = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=depth,
        in_channels=in_channels, num_classes=num_classes, encoder_blocks=encoder_blocks,
    )  # fmt: skip
    if encoder_blocks >= depth:
        raise BadInput(f"encoder_blocks: got {encoder_blocks} of {depth}, expected one less at the most")
    return spec_of_sizes(sizes, depth, encoder_blocks, patch_size, in_channels, num_classes)


def spec_of_sizes(sizes: Sizes, depth: int, encoder_blocks: int, patch: int, channels: int, classes: int) -> ModelSpec:
    """`ddt_spec` of what operators are built to."""
    norm = op("rms_norm", affine=True)
    held = {
        "adaln": op("adaln"), "norm1": norm, "mixer": op("mha_normed", qk_norm="rms", bias="out"), "norm2": norm,
        "mlp": op("swiglu", ratio=int(8 * sizes.width / 3) / sizes.width),
    }  # fmt: skip
    encoder, decoder = (resolve(kind, sizes, held) for kind in KINDS)
    blocks = (encoder,) * encoder_blocks + (decoder,) * (depth - encoder_blocks)
    frame = (("patch", patch), ("channels", channels), ("classes", classes))
    return ModelSpec("ddt", sizes, frame, PREDICTION, blocks)


def variant(name: str, resolution: int = 256, num_classes: int = 1000) -> ModelSpec:
    """Spec of a model of the paper by name, "DDT-XL/2", at 256 or 512 pixels (latents of resolution / 8).

    Raises `BadInput` on an unknown name or resolution.
    """
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    if resolution not in RESOLUTIONS:
        raise BadInput(f"resolution: got {resolution}, expected one of {RESOLUTIONS}")
    depth, width, heads = SIZES[name.removeprefix("DDT-").removesuffix("/2")]
    return ddt_spec(
        input_size=resolution // 8, hidden_size=width, depth=depth, num_heads=heads, encoder_blocks=ENCODER_BLOCKS[width],
        num_classes=num_classes,
    )  # fmt: skip
