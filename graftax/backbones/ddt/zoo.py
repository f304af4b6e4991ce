"""Published DDTs by name: what each is, what was published of it, where to get it. Weights are not shipped; the list is read
without JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Scores, Zoo
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """A published DDT-XL/2, of 22 encoder and 6 decoder blocks.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: of its repository.
        scores: the authors', of 50,000 samples with guidance (arXiv 2504.05741).
        resolution: pixels.
        flops: of one forward pass on one image.
    """

    name: str
    scores: Scores
    resolution: int
    flops: int

    params: int = 674_646_352
    note: str = "a checkpoint of PyTorch Lightning, for images of any size; input_size=64 for 512 pixels"
    edit: str = ""
    blocks: tuple[int, ...] = ()
    licence: str = "none given in the authors' repository: all rights reserved, ask them"

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.ddt.variants import variant

        return variant("DDT-XL/2", self.resolution)

    @property
    def page(self) -> str:
        """Where its authors present it, and have its weights."""
        return f"https://huggingface.co/MCG-NJU/{self.name}"

    @property
    def url(self) -> str:
        """The repository of its weights; the file's name was not at hand."""
        return self.page


_ENTRIES = (
    Published("DDT-XL-22en6de-R256", Scores(1.26), 256, 263_042_859_008),
    Published("DDT-XL-22en6de-R512", Scores(1.28), 512, 1_153_283_883_008),
)
ZOO = Zoo(_ENTRIES, "graftax.backbones.ddt.variants", owner="MCG-NJU")
"""Every published model by its name."""

published = ZOO.published
