"""`DiTConfig`: sizes of a DiT from scratch, as config files give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.dit.relatives import variants as relatives
from graftax.backbones.dit.variants import dit_spec, variant
from graftax.errors import BadInput
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT: a published one by name, or every size.

    Attributes:
        variant: "DiT-XL/2" and its like, "SiT-XL/2" and those of other relatives; then only `resolution` and `num_classes`
            count beside it.
        resolution: 256 or 512 pixels.
        input_size: side of the (latent) image.
        patch_size: side of a token in it.
        in_channels: of the image.
        hidden_size: width of a token.
        depth: number of blocks.
        num_heads: of attention.
        num_classes: without the null class.
    """

    variant: str | None = None
    resolution: int = 256
    input_size: int | None = None
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    num_classes: int = 1000

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            named = relatives.relative if self.variant in relatives.VARIANTS else variant
            return named(self.variant, self.resolution, self.num_classes)
        sizes = {name: getattr(self, name) for name in ("input_size", "hidden_size", "depth", "num_heads")}
        if missing := [name for name, value in sizes.items() if value is None]:
            raise BadInput(f"model: neither variant nor {', '.join(missing)}; expected one or the other")
        return dit_spec(patch_size=self.patch_size, in_channels=self.in_channels, num_classes=self.num_classes, **sizes)
