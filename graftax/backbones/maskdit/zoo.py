"""Published MaskDiTs by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read
without JAX.

Scores are those of the authors on 50,000 ImageNet samples (arXiv 2306.09305, Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graftax.backbones.dit.zoo import Scores
from graftax.spec import ModelSpec

_BUCKET = "https://maskdit-bucket.s3.us-west-2.amazonaws.com"


@dataclass(frozen=True)
class Published:
    """One published MaskDiT-XL/2 at 256 pixels.

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

    params: ClassVar[int] = 730_541_200
    flops: ClassVar[int] = 251_623_276_544
    edit: ClassVar[str] = ""
    blocks: ClassVar[tuple[int, ...]] = ()
    page: ClassVar[str] = "https://github.com/Anima-Lab/MaskDiT"
    licence: ClassVar[str] = "MIT, by the authors' repository"

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
ZOO: dict[str, Published] = {entry.name: entry for entry in _ENTRIES}
"""Every published model by its name."""


def published(name: str) -> Published | None:
    """The model of a name, also of a file or folder called like it; None where none is published."""
    path = Path(name)
    return next((ZOO[part] for part in (path.stem, path.name, path.parent.name) if part in ZOO), None)


def spec_of(name: str) -> ModelSpec | None:
    """The spec of a published model ("maskdit-finetune0") or variant ("MaskDiT-B/2"), else None."""
    from graftax.backbones.maskdit.variants import VARIANTS, variant

    if name in ZOO:
        return ZOO[name].spec()
    return variant(name) if name in VARIANTS else None
