"""`FluxConfig`: sizes of a Flux, as config files say them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.flux.variants import CHANNELS, PATCH, flux_spec, variant
from graftax.backbones.sizes import required
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """Sizes of a Flux: a published one by name alone, or every size.

    Attributes:
        variant: "flux-schnell" or "flux-dev".
        input_size: side of the (latent) image.
        patch_size: side of a token in it.
        in_channels: of the image.
        hidden_size: width of a token.
        double: number of blocks of two streams.
        single: number of blocks of one.
        num_heads: of attention.
        text_width: of a text's tokens.
        text_tokens: of a text.
        pooled_width: of a pooled text; 0: the model takes none, as suits texts of one encoder alone.
        guidance: whether it is a condition.
        words: of the vocabulary that the model reads by a text encoder of its own; 0: texts come embedded.
        text_blocks: of that encoder.
        text_heads: of its attention.
        vocabulary: whose words they are, "scenes".
    """

    variant: str | None = None
    input_size: int | None = None
    patch_size: int = PATCH
    in_channels: int = CHANNELS
    hidden_size: int | None = None
    double: int | None = None
    single: int | None = None
    num_heads: int | None = None
    text_width: int | None = None
    text_tokens: int | None = None
    pooled_width: int | None = None
    guidance: bool = False
    words: int = 0
    text_blocks: int = 2
    text_heads: int = 4
    vocabulary: str = ""

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant)
        sizes = required(
            self, "input_size", "hidden_size", "double", "single", "num_heads", "text_width", "text_tokens",
            "pooled_width",
        )  # fmt: skip
        return flux_spec(
            patch_size=self.patch_size, in_channels=self.in_channels, guidance=self.guidance, words=self.words,
            text_blocks=self.text_blocks, text_heads=self.text_heads, vocabulary=self.vocabulary, **sizes,
        )  # fmt: skip
