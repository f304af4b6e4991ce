"""Published AuraFlows by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read
without JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Zoo
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """One published AuraFlow.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: of its folder.
        version: of the model, "0.2".
        params: number of parameters.
        flops: of one forward pass on one image of 1024 pixels.
        note: what else is to be known.
    """

    name: str
    version: str
    params: int
    flops: int
    note: str = ""

    scores: None = None
    edit: str = ""
    blocks: tuple[int, ...] = ()
    licence: str = "Apache-2.0, by the model cards"

    @property
    def variant(self) -> str:
        """As `graftax.backbones.auraflow.variant` takes it."""
        return f"auraflow-{self.version}"

    @property
    def file(self) -> str:
        """The one file of its authors, without its suffix."""
        return f"aura_flow_{self.version}"

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.auraflow.variants import variant

        return variant(self.variant)

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return "https://blog.fal.ai/auraflow"

    @property
    def url(self) -> str:
        """Its weights; `graftax.load` reads the file without further arguments."""
        return f"https://huggingface.co/fal/{self.name}/resolve/main/{self.file}.safetensors"


_TABLE = "its table of positions is taken to be that of 0.1, 4,096; a file says its own"

_ENTRIES = (
    Published("AuraFlow-v0.2", "0.2", 6_842_876_928, 43_985_813_035_008, _TABLE),
    Published("AuraFlow-v0.3", "0.3", 6_858_605_568, 43_985_813_035_008, "images of up to 1536 pixels a side"),
)
ZOO = Zoo(_ENTRIES, "graftax.backbones.auraflow.variants", owner="fal", also=lambda entry: (entry.file,))
"""Every published model by its name."""

published = ZOO.published
