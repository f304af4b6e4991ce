"""`DDTConfig`: sizes of a DDT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.ddt.variants import ddt_spec, variant
from graftax.backbones.sizes import ClassModelSizes
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class DDTConfig(ClassModelSizes):
    """Sizes of a DDT: one of the paper's by name, "DDT-XL/2" and its like, or every size.

    Attributes:
        resolution: of one by name, 256 or 512 pixels. `ClassModelSizes` describes the fields not listed here.
        encoder_blocks: of all blocks the encoder's.
    """

    resolution: int = 256
    encoder_blocks: int | None = None

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant, self.resolution, self.num_classes)
        return ddt_spec(**self.sizes("encoder_blocks"))
