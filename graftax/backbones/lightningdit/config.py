"""`LightningDiTConfig`: sizes of a LightningDiT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.lightningdit.variants import lightningdit_spec, variant
from graftax.backbones.sizes import ClassModelSizes
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig(ClassModelSizes):
    """Sizes of a LightningDiT: a published one by name, "LightningDiT-XL/1" and its like, or every size.

    Attributes:
        patch_size: side of a token. `ClassModelSizes` describes the fields not listed here.
        in_channels: of the image, VA-VAE's 32 unless said.
        swiglu: as in `lightningdit_spec`; each false is a step back to DiT.
        rope: likewise.
        rmsnorm: likewise.
        qk_norm: likewise.
        shift: likewise.
    """

    patch_size: int = 1
    in_channels: int = 32
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    shift: bool = True

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant, self.num_classes)
        return lightningdit_spec(
            swiglu=self.swiglu, rope=self.rope, rmsnorm=self.rmsnorm, qk_norm=self.qk_norm, shift=self.shift, **self.sizes()
        )
