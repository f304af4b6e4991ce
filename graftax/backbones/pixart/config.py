"""`PixArtConfig`: sizes of a PixArt, as config files say them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.pixart.variants import pixart_spec, variant
from graftax.backbones.sizes import ModelSizes
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class PixArtConfig(ModelSizes):
    """Sizes of a PixArt: a published one by name alone, or every size.

    Attributes:
        text_width: of a text's tokens.
        text_tokens: of a text.
        words: of the vocabulary that the model reads by a text encoder of its own; 0: texts come embedded.
        text_blocks: of that encoder.
        text_heads: of its attention.
        vocabulary: whose words they are, "scenes".
    """

    text_width: int | None = None
    text_tokens: int | None = None
    words: int = 0
    text_blocks: int = 2
    text_heads: int = 4
    vocabulary: str = ""

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant)
        return pixart_spec(
            words=self.words, text_blocks=self.text_blocks, text_heads=self.text_heads, vocabulary=self.vocabulary,
            **self.sizes("text_width", "text_tokens"),
        )  # fmt: skip
