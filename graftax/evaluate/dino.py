"""The Fréchet distance in DINOv2's features, between samples and a reference batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from jax.tree_util import Partial

from graftax.errors import BadInput
from graftax.evaluate.extract import BATCH, extract
from graftax.evaluate.image_file import ImageFile, open_images
from graftax.evaluate.metrics import Gaussian, Moments, frechet_distance
from graftax.evaluate.protocol import DIGITS
from graftax.nets import dinov2
from graftax.nets.dinov2_files import load_dinov2

FD = "FD"
"""What the distance is called, a metric beside those of the ADM suite."""


@dataclass(frozen=True)
class Dino:
    """DINOv2 as a feature space, and what samples are compared with in it.

    Attributes:
        features: of uint8 images.
        dims: numbers per image.
        space: its name.
        reference: the real images.
    """

    features: Partial
    dims: int
    space: str
    reference: ImageFile

    def check(self, name: str, count: int, shape: tuple[int, ...]) -> None:
        """Raise `BadInput` unless `count` images of `shape` (h, w, c), called `name`, compare with the reference."""
        check_size(shape, self.reference)
        for side, number in ((name, count), (self.reference.path, len(self.reference))):
            if number <= self.dims:
                raise BadInput(f"{side}: {number} images, {FD} ({self.space}) expects more than {self.dims}")

    def distance(self, samples: ImageFile, batch: int = BATCH) -> float:
        """Squared Fréchet distance of the class tokens of samples and reference, in memory that does not grow with them."""
        ours, theirs = (self._moments(*pair, batch) for pair in ((samples, "samples"), (self.reference, "reference")))
        return frechet_distance(ours, theirs)

    def _moments(self, images: ImageFile, label: str, batch: int) -> Gaussian:
        stream = Moments(self.dims, self.space)  # of this process alone: where there are several, the first one scores
        for rows in extract(self.features, images, batch=batch, label=f"DINOv2, {label}", show=True):
            stream.add(rows)
        return stream.result()


def read_dino(reference: str | Path, folder: str | Path) -> Dino:
    """The DINOv2 in a folder as transformers writes it, and the images of a reference batch.

    Raises `BadInput` where one of them cannot be read, or the reference has no images.
    """
    images, folder = open_images(reference), Path(folder)
    if images is None:
        raise BadInput(f"{reference}: no images (arr_0) in it, expected them: its moments are Inception's")
    spec, params, source = load_dinov2(folder)
    features = Partial(functools.partial(dinov2.features, spec), params)
    return Dino(features, spec.hidden_size, f"DINOv2 {folder.resolve().name} {source.sha256[:DIGITS]}", images)


def check_size(shape: tuple[int, ...], reference: ImageFile | None) -> None:
    """Raise `BadInput` unless a reference's images, where it has any, are of the samples' `shape` (h, w, c)."""
    if reference is not None and reference.shape[1:] != shape:
        sizes = f"{reference.shape[1:]}, those of the samples {shape}"
        raise BadInput(f"{reference.path}: its images are {sizes}; expected one size")
