"""Published Flux models by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read
without JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Zoo
from graftax.spec import ModelSpec

OWNER = "black-forest-labs"


@dataclass(frozen=True)
class Published:
    """One published Flux.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: as its authors call it.
        variant: as `graftax.backbones.flux.variant` takes it.
        params: number of parameters.
        flops: of one forward pass on one image of 1024 pixels.
        licence: of its weights.
        note: what else is to be known.
    """

    name: str
    variant: str
    params: int
    flops: int
    licence: str
    note: str

    scores: None = None
    edit: str = ""
    blocks: tuple[int, ...] = ()

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.flux.variants import variant

        return variant(self.variant)

    @property
    def file(self) -> str:
        """Its authors' file, without the suffix."""
        return self.variant.replace("flux", "flux1")

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return f"https://github.com/{OWNER}/flux"

    @property
    def url(self) -> str:
        """Its weights; `graftax.load` reads the file without further arguments."""
        return f"https://huggingface.co/{OWNER}/{self.name}/resolve/main/{self.file}.safetensors"


_ENTRIES = (
    Published(
        "FLUX.1-schnell", "flux-schnell", 11_891_178_560, 69_518_446_559_232, "Apache 2.0",
        "timestep-distilled: 1 to 4 steps, without guidance",
    ),
    Published(
        "FLUX.1-dev", "flux-dev", 11_901_408_320, 74_442_748_723_200,
        "FLUX.1 [dev] Non-Commercial License, by the model card; access is granted there",
        "guidance-distilled: guidance is a condition, 3.5 as a rule",
    ),
)  # fmt: skip
ZOO = Zoo(_ENTRIES, "graftax.backbones.flux.variants", owner=OWNER, also=lambda entry: (entry.file,))
"""Every published model by its name."""

published = ZOO.published
