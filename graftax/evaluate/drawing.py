"""Many samples of a model, and what the judge says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax import api
from graftax.checkpoint.files import replacing
from graftax.data.pixels.decoding import Decode
from graftax.diffusion import Sampling, image_keys, initial_noise
from graftax.errors import BadInput, NonFinite, naming
from graftax.evaluate import pictures
from graftax.evaluate.labels import captioned, labelled, scale_of
from graftax.evaluate.metrics import Gaussian, class_accuracy, frechet_distance, moments
from graftax.evaluate.score import Measure, Score
from graftax.models import Model
from graftax.models.backbone import find
from graftax.models.model import check_inputs
from graftax.models.sizes import at_size
from graftax.nets import small
from graftax.nets.classifier import ClassifierSpec, classify
from graftax.ops.base import Params
from graftax.progress import Progress
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Sampling):
    """How many samples are drawn: `Sampling` with a seed and a batch size.

    Image i has the same noise for every model and in any batch (`graftax.diffusion.sampling`), so that another batch size
    changes it by rounding alone.

    Attributes:
        seed: of the noise. `Sampling` describes the fields not listed here.
        batch_size: images per compiled call.
    """

    seed: int = 0
    batch_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise BadInput(f"batch_size: got {self.batch_size}, expected 1 or more")

    @classmethod
    def of(cls, spec: ModelSpec, **settings: Any) -> SampleConfig:
        """How models of `spec` are drawn: `settings`, and what they leave out as the family draws (`api.settings_for`).

        Raises `BadInput` on settings out of range, and where such a model cannot be drawn so.
        """
        return cls(**api.settings_for(spec, **settings))

    @property
    def sampling(self) -> Sampling:
        """The fields that say how one image is drawn."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})

    def __str__(self) -> str:
        return f"{super().__str__()}, seed {self.seed}"


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """(count,) int32: 0, 1, .., classes - 1, 0, 1, .."""
    return np.arange(count, dtype=np.int32) % classes


def draw(model: Model, labels: np.ndarray, config: SampleConfig, *, label: str = "sample", show: bool = True) -> np.ndarray:
    """Samples (n, h, w, c) float32 of classes `labels` (n,), as the model makes them (latents of a latent model)."""
    return draw_with(model, {"y": np.asarray(labels)}, config, label=label, show=show)


def draw_with(
    model: Model, cond: Mapping[str, Any], config: SampleConfig, *, null: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None, label: str = "sample", show: bool = True,
) -> np.ndarray:  # fmt: skip
    """Samples (n, h, w, c) float32 under conditions (n, ...) each, in batches of one shape, so that one compilation does.

    `null`: their unconditional twin, (n, ...) or (1, ...); None: the model's own. `shape` (h, w, c): of an image, None: that
    of the model's own.
    """
    count = len(next(iter(cond.values())))
    size, root, parts = min(config.batch_size, count), jax.random.key(config.seed), []

    def part(arrays: Mapping[str, Any], first: int) -> dict[str, jax.Array]:
        index = range(first, first + size)
        return {name: jnp.asarray(np.take(values, index, 0, mode="wrap")) for name, values in arrays.items()}

    with Progress(count, label, unit="image", show=show) as progress:
        for i in range(0, count, size):
            twin = None if null is None else part(null, i)
            keys = image_keys(root, i, size)
            drawn = api.sample(
                model, cond=part(cond, i), null_cond=twin, sampling=config.sampling, rng=keys,
                initial_noise=initial_noise(keys, config.steps, shape or model.spec.image_shape),
            )  # fmt: skip
            parts.append(require_finite(np.asarray(drawn), f"images {i} to {i + size - 1}"))
            progress.advance(min(size, count - i))
    return np.concatenate(parts)[:count]


def whole_conditions(
    spec: ModelSpec, cond: Mapping[str, Any], shape: tuple[int, ...] | None = None, guidance: float | None = None
) -> dict[str, np.ndarray]:
    """`cond` (n, ...) and all that a model is conditioned on beside classes and texts, as for images of `shape`, None: of
    the model's own; `guidance` as in `guidance_of`."""
    count, sized = len(next(iter(cond.values()))), spec if shape is None else at_size(spec, np.empty((1, *shape)))
    rest = {name: value for name, value in find(spec).example(sized, 1).items() if name not in (*cond, *OF_TEXTS)}
    if (given := guidance_of(spec, guidance)) is not None:
        rest["guidance"] = np.full(1, given, np.float32)
    return {**{name: np.repeat(np.asarray(value), count, 0) for name, value in rest.items()}, **cond}


def guidance_of(spec: ModelSpec, guidance: float | None = None) -> float | None:
    """The guidance that a model is conditioned on, as Flux-dev is: the one given, else its authors' own; None where it takes
    none. Raises `BadInput` where one is given to such a model, or it is below 0 or not finite."""
    own = find(spec).example(spec, 1).get("guidance")
    if guidance is None:
        return None if own is None else float(own[0])
    if own is None:
        raise BadInput(f"guidance: got {guidance:g}, expected none: this {spec.backbone} is not conditioned on any")
    if not (guidance >= 0 and math.isfinite(guidance)):
        raise BadInput(f"guidance: got {guidance:g}, expected 0 or more, finite")
    return guidance


def shape_for(spec: ModelSpec, size: Sequence[int], side: int) -> tuple[int, int, int]:
    """(h, w, c) of what a model draws for pictures of `size`, height and width in pixels, `side` of them to one of its
    numbers. Raises `BadInput` where the model cannot draw such."""
    (height, width), unit = size, side * spec.option("patch")
    if min(size) < 1 or height % unit or width % unit:
        raise BadInput(f"size: got {height} {width}, expected multiples of {unit} pixels")
    shape = height // side, width // side, spec.option("channels")
    x = jnp.zeros((1, *shape))
    with naming("size"):
        check_inputs(spec, x, jnp.zeros(1), find(at_size(spec, x)).example(at_size(spec, x), 1))
    return shape


def require_finite(drawn: np.ndarray, what: str) -> np.ndarray:
    """`drawn`; raises `NonFinite`, naming `what` it is, where a number in it is none."""
    if not np.isfinite(drawn).all():
        raise NonFinite(f"{what}: not finite, the model's weights are damaged or the guidance is too strong")
    return drawn


OF_TEXTS = ("text", "text_mask", "pooled")
"""Conditions that come of prompts alone: nothing can stand for one that is missing."""

Layout = Callable[[np.ndarray], np.ndarray]
"""From pictures (n, h, w, c) uint8 to one (H, W, c) that shows them."""


def write(path: Path, drawn: np.ndarray, decode: Decode | None, layout: Layout, **said: Any) -> None:
    """A .png as `layout` has it, or an .npz of `images` uint8 (`latents` float32 without a decoder) and what is `said` of
    each, `labels` or `captions`; whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        if decode is None:
            np.savez(file, latents=drawn, **said)
        elif path.suffix == ".npz":
            np.savez(file, images=pictures.to_uint8(decode(drawn)), **said)
        else:
            pictures.save_png(file, layout(pictures.to_uint8(decode(drawn))))


def in_rows(names: Sequence[str], scale: int | None = None) -> Layout:
    """A row with its name for each of `names`, every pixel `scale` pixels wide (None: `labels.scale_of`)."""

    def layout(images: np.ndarray) -> np.ndarray:
        rows = pictures.grid(images, len(images) // len(names), scale=scale or scale_of(images.shape[2]))
        return labelled(rows, names)

    return layout


def with_captions(captions: Sequence[str], columns: int, scale: int | None = None) -> Layout:
    """Row by row, each with its caption below it; `scale` as in `labels.captioned`."""
    return lambda images: captioned(list(images), captions, columns, scale)


ACCURACY = Measure("accuracy", "class accuracy", "accuracy")
"""Share of images that the classifier calls by their class."""

FRECHET = Measure("frechet", "Fréchet distance", "Fréchet", share=False)
"""Distance of their features to those of real images."""


@dataclass(frozen=True)
class Judge:
    """A classifier, and the real images that samples are compared with.

    Attributes:
        spec: of the classifier.
        params: its weights.
        reference: Gaussian of the real images' features.
    """

    spec: ClassifierSpec
    params: Params
    reference: Gaussian

    def score(self, pixels: np.ndarray, labels: np.ndarray) -> Score:
        """`ACCURACY` and `FRECHET` of images (n, h, w, c) in [-1, 1] against the labels (n,) they were drawn for."""
        logits, features = classify(self.spec, self.params, pixels)
        distance = frechet_distance(moments(features, self.reference.space), self.reference)
        return Score({ACCURACY.key: class_accuracy(logits, labels), FRECHET.key: distance}, len(pixels))


def demo_judge(reference: np.ndarray, classifier: str = "demo") -> Judge:
    """The judge with a shipped or trained classifier, its reference the real images (n, h, w, c) in [-1, 1]."""
    spec, params = small.load_classifier(classifier)
    _, features = classify(spec, params, reference)
    return Judge(spec, params, moments(features, f"features of the classifier {classifier!r}"))
