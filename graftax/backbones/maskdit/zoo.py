"""Published MaskDiTs by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read
without JAX.

Scores are those of the authors on 50,000 ImageNet samples (arXiv 2306.09305, Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Scores, Zoo
from graftax.spec import ModelSpec

_BUCKET = "https://maskdit-bucket.s3.us-west-2.amazonaws.com"


@dataclass(frozen=True)
class Published:
    """One published MaskDiT-XL/2 at 256 pixels.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: as its authors' download script has it.
        file: the file's name.
        scores: what its authors publish; None where that is not said of this file.
        note: what else is to be known.
    """

    name: str
    file: str
    scores: Scores | None = None
    note: str = ""

    params: int = 730_541_200
    flops: int = 251_623_276_544
    edit: str = ""
    blocks: tuple[int, ...] = ()
    page: str = "https://github.com/Anima-Lab/MaskDiT"
    licence: str = "MIT, by the authors' repository"

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.maskdit.variants import variant

        return variant("MaskDiT-XL/2")

    @property
    def url(self) -> str:
        """Its weights, in PyTorch's format; `graftax.load` reads the file without further arguments."""
        return f"{_BUCKET}/{self.file}"


_ENTRIES = (
    Published("maskdit-trained", "2000000.pt", note="before the last training on all tokens"),
    Published(
        "maskdit-finetune0", "2075000.pt", Scores(2.28, 276.56, 5.67, 0.80, 0.61),
        note="trained on all tokens at last; without guidance FID 5.69",
    ),
    Published("maskdit-finetune-cos", "cos-2037500.pt", note="trained on all tokens at last, the masked share falling"),
)  # fmt: skip
ZOO = Zoo(_ENTRIES, "graftax.backbones.maskdit.variants")
"""Every published model by its name."""

published = ZOO.published
