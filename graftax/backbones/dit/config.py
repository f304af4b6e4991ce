"""`DiTConfig`: sizes of a DiT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.dit.relatives import variants as relatives
from graftax.backbones.dit.variants import dit_spec, variant
from graftax.backbones.sizes import ClassModelSizes
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ClassModelSizes):
    """Sizes of a DiT: a published one by name, "DiT-XL/2" and its like, "SiT-XL/2" and those of other relatives, or every
    size.

    Attributes:
        resolution: of a published one, 256 or 512 pixels. `ClassModelSizes` describes the fields not listed here.
    """

    resolution: int = 256

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            named = relatives.relative if self.variant in relatives.VARIANTS else variant
            return named(self.variant, self.resolution, self.num_classes)
        return dit_spec(**self.sizes())
