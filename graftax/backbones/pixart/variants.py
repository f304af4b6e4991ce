"""PixArt (arXiv 2310.00426, 2403.04692): published variants as specs."""

from __future__ import annotations

from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Prediction, op

DEPTH, WIDTH, HEADS = 28, 1152, 16
"""Of the one published size, XL/2."""

TEXT_WIDTH = 4096
"""Channels of T5-XXL's embeddings."""

TEXT_TOKENS = {"alpha": 120, "sigma": 300}
"""Tokens of a caption, padding included, by generation; also rows of the null caption."""

RESOLUTIONS = {"alpha": (256, 512, 1024), "sigma": (256, 512, 1024, 2048)}
VARIANTS = tuple(f"pixart-{name}-{side}" for name, sides in RESOLUTIONS.items() for side in sides)


def interpolation_of(generation: str, resolution: int) -> float:
    """What positions of a model for this many pixels are divided by: resolution / 512, in PixArt-alpha no less than 1."""
    return max(resolution / 512, 1.0) if generation == "alpha" else resolution / 512


def around() -> dict[str, OpSpec]:
    """What a PixArt's block holds around its mixers, by slot."""
    norm = op("layer_norm", affine=False, eps=1e-6)
    return {"adaln": op("adaln_shared"), "norm1": norm, "cross": op("cross_mha"), "norm2": norm}


def pixart_frame(
    *, patch_size: int, in_channels: int, side: int, interpolation: float, text_width: int, null_tokens: int, micro: bool
) -> tuple[tuple[str, int | float], ...]:
    """The options of a frame; `side`: tokens on a side of the square that positions are stretched onto."""
    return (
        ("patch", patch_size), ("channels", in_channels), ("base", side), ("interpolation", float(interpolation)),
        ("text_width", text_width), ("null_tokens", null_tokens), ("micro", micro),
    )  # fmt: skip


def pixart_spec(
    *, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, in_channels: int = 4,
    learn_sigma: bool = True, interpolation: float = 1.0, text_width: int = TEXT_WIDTH,
    text_tokens: int = TEXT_TOKENS["sigma"], null_tokens: int = 0, micro: bool = False, mixer: OpSpec | None = None,
    mlp: OpSpec | None = None, words: int = 0, text_blocks: int = 2, text_heads: int = 4,
    vocabulary: str = "",
) -> ModelSpec:  # fmt: skip
    """Spec of a PixArt with equal blocks: attention and a ratio-4 MLP unless given otherwise.

    `input_size` is the side of the (latent) image, `text_width` and `text_tokens` are those of the caption's embedding,
    `null_tokens` rows of the learned null caption (0: none), `micro` whether the original image's size is a condition. With
    `words` the model reads numbers of so many words by a text encoder of its own (`graftax.backbones.words`), of
    `text_blocks` blocks with `text_heads` heads; `vocabulary` names whose words they are. Raises `BadInput` on sizes that do
    not go together.
    """
    made = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=depth,
        in_channels=in_channels, text_width=text_width, text_tokens=text_tokens, context=text_tokens,
    )  # fmt: skip
    frame = pixart_frame(
        patch_size=patch_size, in_channels=in_channels, side=made.grid[0], interpolation=interpolation,
        text_width=text_width, null_tokens=null_tokens, micro=micro,
    )  # fmt: skip
    if words:
        frame += (("words", words), ("text_blocks", text_blocks), ("text_heads", text_heads))
        frame += (("vocabulary", vocabulary),) if vocabulary else ()
    block: BlockSpec = resolve("pixart", made, {**around(), "mixer": mixer or op("mha"), "mlp": mlp or op("mlp")})
    return ModelSpec("pixart", made, frame, Prediction(variance=learn_sigma), (block,) * depth)


def variant(name: str) -> ModelSpec:
    """Spec of a published model by generation and pixels of a side, "pixart-sigma-1024": as in its authors' file.

    Raises `BadInput` on an unknown name.
    """
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    _, generation, pixels = name.split("-")
    tokens, resolution = TEXT_TOKENS[generation], int(pixels)
    return pixart_spec(
        input_size=resolution // 8, patch_size=2, hidden_size=WIDTH, depth=DEPTH, num_heads=HEADS,
        interpolation=interpolation_of(generation, resolution), text_tokens=tokens, null_tokens=tokens,
        micro=name == "pixart-alpha-1024",
    )  # fmt: skip
