"""Published models of DiT's relatives by name: what each is, where to get it, on what terms. Weights are not shipped; the
list is read without JAX.

Scores are those of the authors on 50,000 ImageNet samples with guidance. TREAD's authors have published no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftax.backbones.dit import zoo as dit
from graftax.backbones.published import Scores, Zoo
from graftax.errors import BadInput
from graftax.spec import ModelSpec

_MIT = "MIT, by the authors' repository"
_NONE = "no licence given with the code or the weights: all rights reserved"
_HUB = "https://huggingface.co"
_XL, _XL_F16 = (675_111_184, 237_292_126_208), (675_148_064, 237_311_000_576)
"""Parameters and FLOPs of REPA's XL at 256 pixels, of latents 32 x 32 x 4 and 16 x 16 x 32."""


@dataclass(frozen=True)
class Published:
    """One published model.

    What is not listed is as in `graftax.backbones.published.Published`.

    Attributes:
        name: ours: the authors' files are called "last.pt" and the like.
        variant: as `graftax.backbones.dit.relatives.variants` has it; "" is REPA's XL of latents 16 x 16 x 32.
        scores: what its authors publish.
        page: where they present it.
        url: its weights.
        resolution: of the images.
        params: number of parameters, the fixed table of positions included, heads of training losses not.
        flops: of one forward pass on one image.
        licence: of its weights, as far as known. Not legal advice: read the authors' pages.
        layout: what `graftax.load(layout=)` needs to hear, where tensors cannot tell.
        note: what else is to be known.
    """

    name: str
    variant: str
    scores: Scores
    page: str
    url: str
    params: int
    flops: int
    resolution: int = 256
    licence: str = _MIT
    layout: str = ""
    note: str = ""

    edit: str = ""
    blocks: tuple[int, ...] = ()

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.dit.relatives.variants import relative, repa_of_f16

        return relative(self.variant, self.resolution) if self.variant else repa_of_f16()


_REPAE = "https://github.com/End2End-Diffusion/REPA-E"
_JOINT = "trained together with its VAE, which the checkpoint also holds; latents are normalised by the statistics `bn`"


def _repae(vae: str, fid: float, params: int, flops: int, variant: str = "") -> Published:
    url = f"{_HUB}/REPA-E/sit-repae-{vae}/resolve/main/checkpoints/0400000.pt"
    return Published(f"sit-repae-{vae}", variant, Scores(fid), _REPAE, url, params, flops, note=_JOINT)


_ENTRIES = (
    Published(
        "SiT-XL-2-256x256", "SiT-XL/2", Scores(2.06, 270.27, 4.50, 0.82, 0.59), "https://github.com/willisma/SiT",
        "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0",
        675_129_632, 237_301_563_392, layout="sit", note="scores by the SDE; by the ODE FID 2.15",
    ),
    Published(
        "REPA-SiT-XL-2-256x256", "REPA-XL/2", Scores(1.42, 305.7, 4.70, 0.80, 0.65), "https://github.com/sihyun-yu/REPA",
        "https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        *_XL,
    ),
    _repae("sdvae", 1.67, *_XL, "REPA-XL/2"),
    _repae("invae", 1.61, *_XL_F16),
    _repae("vavae", 1.73, *_XL_F16),
    Published(
        "sit-ldm-e2e-vavae", "", Scores(1.26), _REPAE,
        f"{_HUB}/REPA-E/sit-ldm-e2e-vavae/resolve/main/checkpoints/4000000.pt", *_XL_F16,
        note="REPA on latents of REPA-E's VAE; 1.12 with as many images of every class",
    ),
    Published(
        "SRA-SiT-XL-2-256x256", "SRA-XL/2", Scores(1.58, 311.4), "https://github.com/vvvvvjdy/SRA",
        f"{_HUB}/DyJiang/SRA/resolve/main/sitxl-sra-res256-ep800.pt", *_XL,
    ),
    Published(
        "SRA-SiT-XL-2-512x512", "SRA-XL/2", Scores(2.07, 302.2), "https://github.com/vvvvvjdy/SRA",
        f"{_HUB}/DyJiang/SRA/resolve/main/sitxl-sra-res512-ep400.pt", 675_995_920, 1_049_978_372_096, 512,
    ),
    Published(
        "REG-SiT-XL-2-256x256", "REG-XL/2", Scores(1.36, 299.4, 4.25, 0.77, 0.66), "https://github.com/Martinser/REG",
        f"{_HUB}/Martinser/REG/tree/main", 676_886_032, 238_254_128_000,
        note="denoises DINOv2's class token with the image",
    ),
    Published(
        "SiT-ReDi-XL-2-3M", "ReDi-XL/2", Scores(1.64, 289.3), "https://github.com/zelaki/ReDi",
        "https://www.dropbox.com/scl/fi/yi726j26yc57s4qhzgbtt/3000000.pt?rlkey=tcr8e0n9rrm12wfen44dkz00r&dl=1",
        675_184_944, 237_329_874_944,
        licence=_NONE, layout="redi",
        note="denoises 8 components of DINOv2's features with the 4 channels of the latents",
    ),
)  # fmt: skip
ZOO = Zoo(
    _ENTRIES, "graftax.backbones.dit.relatives.variants", make="relative",
    also=lambda entry: ("SiT-XL-2-256",) * (entry.name == "SiT-XL-2-256x256"),  # its file where it lies
)  # fmt: skip
"""Every published model by its name."""


def published(name: str) -> Published | dit.Published | None:
    """The model of a name, a DiT's included, also of a file or folder called like it; None where none is published."""
    return ZOO.published(name) or dit.ZOO.published(name)


def check_published(path: Path, spec: ModelSpec) -> None:
    """Raise `BadInput` where a file has a published model's name but is another, or was read as one of another family; for
    DiT's see `graftax.backbones.dit.zoo.check_published`."""
    entry = ZOO.published(path.name)
    if entry is None:
        dit.check_published(path, spec)
        return
    expected = entry.spec()
    if spec == expected:
        return
    alike = (spec.image_shape, spec.blocks) == (expected.image_shape, expected.blocks)
    if alike and entry.layout:
        raise BadInput(f"named as a published {entry.variant}, but read as {spec.prediction}; give layout={entry.layout!r}")
    raise BadInput(f"named as a published {entry.variant} of {entry.params:,} parameters, but holds another model")
