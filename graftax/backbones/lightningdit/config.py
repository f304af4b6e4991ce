"""`LightningDiTConfig`: sizes of a LightningDiT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.lightningdit.variants import lightningdit_spec, variant
from graftax.errors import BadInput
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig:
    """Sizes of a LightningDiT: a published one by name, or every size.

    Attributes:
        variant: "LightningDiT-XL/1" and its like; then only `num_classes` counts beside it.
        input_size: side of the (latent) image.
        patch_size: side of a token in it.
        in_channels: of the image.
        hidden_size: width of a token.
        depth: number of blocks.
        num_heads: of attention.
        num_classes: without the null class.
        swiglu: as in `lightningdit_spec`; each false is a step back to DiT.
        rope: likewise.
        rmsnorm: likewise.
        qk_norm: likewise.
        shift: likewise.
    """

    variant: str | None = None
    input_size: int | None = None
    patch_size: int = 1
    in_channels: int = 32
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    num_classes: int = 1000
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    shift: bool = True

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant, self.num_classes)
        sizes = {name: getattr(self, name) for name in ("input_size", "hidden_size", "depth", "num_heads")}
        if missing := [name for name, value in sizes.items() if value is None]:
            raise BadInput(f"model: neither variant nor {', '.join(missing)}; expected one or the other")
        return lightningdit_spec(
            patch_size=self.patch_size, in_channels=self.in_channels, num_classes=self.num_classes, swiglu=self.swiglu,
            rope=self.rope, rmsnorm=self.rmsnorm, qk_norm=self.qk_norm, shift=self.shift, **sizes,
        )  # fmt: skip
