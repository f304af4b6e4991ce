"""`DataConfig`: which images, and in what form the model gets them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.data.pipeline import TRANSFORMS
from graftax.data.source import FASHION_MNIST
from graftax.data.subset import check_subset
from graftax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and in what form the model gets them. Raises `BadInput` on values that do not go together.

    Attributes:
        source: "fashion_mnist" (embedded), "scenes" (drawn by `graftax.data.scenes`: `limit` of them, or 100,000), an
            `.npz`, a folder with one sub-folder of images per class, "tfds:NAME#SPLIT" as tensorflow-datasets prepared it
            (as array_record), a folder that `graftax encode` or `graftax synthesize` wrote; with `text`, pictures with
            captions (`graftax.data.text.captions.open_captioned`). An address hf:// of any of these files will do.
        size: side of the images in pixels. Those in memory are centred on a square of it, others cropped as in ADM.
        latents: "none" for pixels, "given" where the source holds latents (a folder of `graftax encode`, or an `.npz` with
            `latents`), and for images in memory also "demo", "scenes" or the folder of an autoencoder trained with
            `graftax train`.
        transform: "none", or "flip" for pixels and encoded folders.
        held_out: the share of `source` kept for testing.
        limit: the first so many training images only.
        test: the held-out images' source, of the same kind, in place of a share.
        subset: a stratified part of the training images, "8k", "10%" or "128 per class".
        test_subset: likewise of the held-out ones.
        subset_seed: draws both.
        text: the text store of the captions, as `graftax encode --text` wrote it. A latent set names its own; this one is
            taken where that was moved.
        features: folder of the training images' features (`graftax.data.features.write_features`), which batches then have
            too; of a latent set those of the images that it was encoded from.
        data_dir: where tensorflow-datasets keeps its sets; default TFDS_DATA_DIR.
    """

    source: str = FASHION_MNIST
    size: int = 32
    latents: str = "none"
    transform: str = "none"
    held_out: float = 0.0
    limit: int | None = None
    test: str | None = None
    subset: str | None = None
    test_subset: str | None = None
    subset_seed: int = 0
    text: str | None = None
    features: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise BadInput(f"transform: got {self.transform!r}, expected one of {TRANSFORMS}")
        for name in ("size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadInput(f"{name}: got {value}, expected 1 or more")
        if self.transform == "flip" and self.latents not in ("none", "given"):
            raise BadInput(
                "transform: got 'flip' with latents, expected 'none': latents of a mirrored image are not mirrored"
            )
        for text in (self.subset, self.test_subset):
            if text is not None:
                check_subset(text)
        if self.subset_seed < 0:
            raise BadInput(f"subset_seed: got {self.subset_seed}, expected 0 or more")
        if self.test is not None and self.held_out:
            raise BadInput(f"held_out: got {self.held_out} beside test {self.test!r}, expected one of the two")
        if not 0 <= self.held_out < 1:
            raise BadInput(f"held_out: got {self.held_out}, expected a share in [0, 1)")
