"""Published PixArts by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read without
JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Zoo
from graftax.spec import ModelSpec

_LICENCE = "CreativeML Open RAIL++-M, which restricts uses, by the model cards"


@dataclass(frozen=True)
class Published:
    """One published PixArt, as in its authors' file.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: of the file, without its suffix.
        variant: as `graftax.backbones.pixart.variant` takes it.
        params: number of parameters, the fixed null caption included.
        flops: of one forward pass on one image.
        note: what else is to be known.
    """

    name: str
    variant: str
    params: int
    flops: int
    note: str = ""

    scores: None = None
    edit: str = ""
    blocks: tuple[int, ...] = ()
    licence: str = _LICENCE

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.pixart.variants import variant

        return variant(self.variant)

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return f"https://github.com/PixArt-alpha/PixArt-{'sigma' if 'sigma' in self.variant else 'alpha'}"

    @property
    def url(self) -> str:
        """Its weights, in PyTorch's format; `graftax.load` reads the file without further arguments."""
        home = "PixArt-Sigma" if "sigma" in self.variant else "PixArt-alpha"
        return f"https://huggingface.co/PixArt-alpha/{home}/resolve/main/{self.name}.pth"


_2K = "its training code has key and value compression as an option that this model, by its config, does not use"

_ENTRIES = (
    Published("PixArt-XL-2-256x256", "pixart-alpha-256", 611_347_616, 298_195_386_368),
    Published("PixArt-XL-2-512x512", "pixart-alpha-512", 611_347_616, 1_237_035_548_672),
    Published("PixArt-XL-2-1024-MS", "pixart-alpha-1024", 611_840_672, 6_524_996_354_048),
    Published("PixArt-Sigma-XL-2-256x256", "pixart-sigma-256", 612_084_896, 333_112_967_168),
    Published("PixArt-Sigma-XL-2-512-MS", "pixart-sigma-512", 612_084_896, 1_289_913_270_272),
    Published("PixArt-Sigma-XL-2-1024-MS", "pixart-sigma-1024", 612_084_896, 6_649_713_164_288),
    Published("PixArt-Sigma-XL-2-2K-MS", "pixart-sigma-2048", 612_084_896, 52_610_491_645_952, _2K),
)
ZOO = Zoo(_ENTRIES, "graftax.backbones.pixart.variants", owner="PixArt-alpha")
"""Every published model by its name."""

published = ZOO.published
