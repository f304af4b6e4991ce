"""`MaskDiTConfig`: sizes of a MaskDiT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.maskdit.variants import maskdit_spec, variant
from graftax.backbones.sizes import ClassModelSizes
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class MaskDiTConfig(ClassModelSizes):
    """Sizes of a MaskDiT: one by name, "MaskDiT-XL/2", or every size.

    Attributes:
        resolution: of one by name, in pixels. `ClassModelSizes` describes the fields not listed here.
        decoder_width: of the decoder's tokens.
        decoder_depth: number of its blocks.
        decoder_heads: of its attention.
    """

    resolution: int = 256
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant, self.resolution, self.num_classes)
        return maskdit_spec(**self.sizes("decoder_width", "decoder_depth", "decoder_heads"))
