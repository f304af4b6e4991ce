"""Published SD3s by name: what each is, where to get it, on what terms. Weights are not shipped; the list is read without
JAX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Published:
    """One published SD3, as in its authors' file.

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

    note: ClassVar[str] = "its authors give it to those who have agreed to its licence"
    scores: ClassVar[None] = None
    edit: ClassVar[str] = ""
    blocks: ClassVar[tuple[int, ...]] = ()
    licence: ClassVar[str] = "Stability AI Community License, which restricts uses, by the model cards"

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
ZOO: dict[str, Published] = {entry.name: entry for entry in _ENTRIES}
"""Every published model by its name."""

_CALLED = {name: entry for entry in _ENTRIES for name in (entry.name, entry.home, entry.folder)}


def published(name: str) -> Published | None:
    """The model of a name, also of a file or folder called like it; None where none is published."""
    path = Path(name)
    return next((_CALLED[part] for part in (path.name, path.stem, path.parent.name) if part in _CALLED), None)


def spec_of(name: str) -> ModelSpec | None:
    """The spec of a published model ("sd3_medium", "stabilityai/stable-diffusion-3.5-large") or variant ("sd3-medium"), else
    None."""
    from graftax.backbones.sd3.variants import VARIANTS, variant

    known = name.removeprefix("stabilityai/")
    if known in _CALLED:
        return _CALLED[known].spec()
    return variant(name) if name in VARIANTS else None
