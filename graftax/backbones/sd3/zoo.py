"""Published SD3s by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read without
JAX."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.backbones.published import Zoo
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """One published SD3, as in its authors' file.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: of the file, without its suffix.
        variant: as `graftax.backbones.sd3.variant` takes it.
        home: its authors' repository on Hugging Face.
        folder: name of the repository that has it as a pipeline of diffusers.
        params: number of parameters, the fixed table of positions included.
        flops: of one forward pass on one image and text.
    """

    name: str
    variant: str
    home: str
    folder: str
    params: int
    flops: int

    note: str = "its authors give it to those who have agreed to its licence"
    scores: None = None
    edit: str = ""
    blocks: tuple[int, ...] = ()
    licence: str = "Stability AI Community License, which restricts uses, by the model cards"

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.sd3.variants import variant

        return variant(self.variant)

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return f"https://huggingface.co/stabilityai/{self.home}"

    @property
    def url(self) -> str:
        """Its weights; `graftax.load` reads the file without further arguments."""
        return f"{self.page}/resolve/main/{self.name}.safetensors"


_MEDIUM, _MEDIUM_35, _LARGE_35 = "stable-diffusion-3-medium", "stable-diffusion-3.5-medium", "stable-diffusion-3.5-large"
_ENTRIES = (
    Published("sd3_medium", "sd3-medium", _MEDIUM, f"{_MEDIUM}-diffusers", 2_084_951_104, 8_917_802_903_760),
    Published("sd3.5_medium", "sd3.5-medium", _MEDIUM_35, _MEDIUM_35, 2_469_663_936, 11_273_508_055_248),
    Published("sd3.5_large", "sd3.5-large", _LARGE_35, _LARGE_35, 8_146_280_768, 31_163_306_536_028),
)
ZOO = Zoo(_ENTRIES, "graftax.backbones.sd3.variants", owner="stabilityai", also=lambda entry: (entry.home, entry.folder))
"""Every published model by its name."""

published = ZOO.published
