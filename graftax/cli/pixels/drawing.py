"""Many samples of a model, and what the judge says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from graftax import api
from graftax.checkpoint.files import replacing
from graftax.cli.pixels import nets
from graftax.cli.pixels.decoding import Decode
from graftax.cli.schema import SampleConfig
from graftax.evaluate import pictures
from graftax.evaluate.classifier import ClassifierSpec, classify
from graftax.evaluate.metrics import Gaussian, class_accuracy, frechet_distance, moments
from graftax.models import Model
from graftax.progress import Progress


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """(count,) int32: 0, 1, .., classes - 1, 0, 1, .."""
    return np.arange(count, dtype=np.int32) % classes


def draw(model: Model, labels: np.ndarray, config: SampleConfig, *, label: str = "sample", show: bool = True) -> np.ndarray:
    """Samples (n, h, w, c) float32 of classes `labels` (n,), as the model makes them (latents of a latent model)."""
    size = min(config.batch_size, len(labels))
    padded = np.resize(labels, -(-len(labels) // size) * size)  # whole batches: one compilation
    root, parts = jax.random.key(config.seed), []
    with Progress(len(labels), label, unit="image", show=show) as progress:
        for i in range(0, len(padded), size):
            part = api.sample(
                model, jnp.asarray(padded[i : i + size]), sampler=config.sampler, steps=config.steps,  # pyright: ignore
                cfg_scale=config.cfg_scale, cfg_channels=config.cfg_channels, eta=config.eta,
                rng=jax.random.fold_in(root, i),
            )  # fmt: skip
            parts.append(np.asarray(part))
            progress.advance(min(size, len(labels) - i))
    return np.concatenate(parts)[: len(labels)]


def write(path: Path, drawn: np.ndarray, decode: Decode | None, labels: np.ndarray, columns: int) -> None:
    """A .png grid, or an .npz of `images` uint8 (`latents` float32 without a decoder) and `labels`; whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        if decode is None:
            np.savez(file, latents=drawn, labels=labels)
        elif path.suffix == ".npz":
            np.savez(file, images=pictures.to_uint8(decode(drawn)), labels=labels)
        else:
            pictures.save_png(file, pictures.grid(pictures.to_uint8(decode(drawn)), columns))


@dataclass(frozen=True)
class Score:
    """What the judge found: share of images called by their class, Fréchet distance to the reference, and of how many."""

    accuracy: float
    frechet: float
    count: int


@dataclass(frozen=True)
class Judge:
    """A classifier and the features of the real images that samples are compared with."""

    spec: ClassifierSpec
    params: nets.Params
    reference: Gaussian

    def score(self, pixels: np.ndarray, labels: np.ndarray) -> Score:
        """Judge images (n, h, w, c) in [-1, 1] against the labels (n,) they were drawn for."""
        logits, features = classify(self.spec, self.params, pixels)
        distance = frechet_distance(moments(features, self.reference.space), self.reference)
        return Score(class_accuracy(logits, labels), distance, len(pixels))


def demo_judge(reference: np.ndarray, classifier: str = "demo") -> Judge:
    """The judge with a shipped or trained classifier, its reference the real images (n, h, w, c) in [-1, 1]."""
    spec, params = nets.load_classifier(classifier)
    _, features = classify(spec, params, reference)
    return Judge(spec, params, moments(features, f"features of the classifier {classifier!r}"))
