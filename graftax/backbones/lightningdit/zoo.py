"""Published LightningDiTs by name: what each is, what was published of it, where to get it. Weights are not shipped; the
list is read without JAX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graftax.backbones.dit.zoo import Scores
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """A published LightningDiT-XL/1.

    Attributes:
        name: of its repository, and of the file without its suffix.
        scores: the authors', of 50,000 samples with guidance (arXiv 2501.01423, Table 3).
        note: how it was drawn for them.
    """

    name: str
    scores: Scores
    note: str

    params: ClassVar[int] = 675_256_736
    flops: ClassVar[int] = 237_333_020_672
    edit: ClassVar[str] = ""
    blocks: ClassVar[tuple[int, ...]] = ()
    licence: ClassVar[str] = "MIT, by the authors' repository"

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
ZOO: dict[str, Published] = {entry.name: entry for entry in _ENTRIES}
"""Every published model by its name."""


def published(name: str) -> Published | None:
    """The model of a name, also of a file or folder called like it; None where none is published."""
    path = Path(name)
    return next((ZOO[part] for part in (path.stem, path.name, path.parent.name) if part in ZOO), None)


def spec_of(name: str) -> ModelSpec | None:
    """The spec of a published model ("lightningdit-xl-imagenet256-64ep") or variant ("LightningDiT-B/1"), else None."""
    from graftax.backbones.lightningdit.variants import VARIANTS, variant

    known = name.removeprefix("hustvl/")
    if known in ZOO:
        return ZOO[known].spec()
    return variant(name) if name in VARIANTS else None
