"""Published LightningDiTs by name: what each is, what was published of it, where to get it. Weights are not shipped; the
list is read without JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Scores, Zoo
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """A published LightningDiT-XL/1.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: of its repository, and of the file without its suffix.
        scores: the authors', of 50,000 samples with guidance (arXiv 2501.01423, Table 3).
        note: how it was drawn for them.
    """

    name: str
    scores: Scores
    note: str

    params: int = 675_256_736
    flops: int = 237_333_020_672
    edit: str = ""
    blocks: tuple[int, ...] = ()
    licence: str = "MIT, by the authors' repository"

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.lightningdit.variants import variant

        return variant("LightningDiT-XL/1")

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return f"https://huggingface.co/hustvl/{self.name}"

    @property
    def url(self) -> str:
        """Its weights; `graftax.load` reads the file without further arguments."""
        return f"{self.page}/resolve/main/{self.name}.pt"


_ENTRIES = (
    Published(
        "lightningdit-xl-imagenet256-800ep", Scores(1.35, 295.3, 4.15, 0.79, 0.65),
        "800 epochs; guidance 6.7 on 3 of 32 channels from a data fraction of 0.125; 2.17 without",
    ),
    Published(
        "lightningdit-xl-imagenet256-64ep", Scores(2.11, 252.3, 4.16, 0.81, 0.58),
        "64 epochs; guidance 10 on 3 of 32 channels from a data fraction of 0.1; 5.14 without",
    ),
)  # fmt: skip
ZOO = Zoo(_ENTRIES, "graftax.backbones.lightningdit.variants", owner="hustvl")
"""Every published model by its name."""

published = ZOO.published
