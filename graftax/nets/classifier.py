"""A small residual CNN for 32x32 grey images: the judge of demo samples, and the feature space of their Fréchet distance.

Parameters are float32 (or float16 on disk), without running statistics: normalisation is GroupNorm. Images are (b, h, w, c)
in [-1, 1]. This judge is trained on a few thousand garments, so distances measured with it compare demo models among
themselves; they are not the FID of papers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from graftax.errors import BadInput
from graftax.nets.convolving import compile_options

Params = dict[str, Any]
Batch = Mapping[str, Any]  # name -> (b, ...) array
Metrics = dict[str, jax.Array]  # name -> () float32


@dataclass(frozen=True)
class ClassifierSpec:
    """Sizes of the classifier and how it is trained. Raises `BadInput` on sizes that cannot be.

    Attributes:
        image_size: side of the images.
        image_channels: of the images.
        num_classes: how many it tells apart.
        widths: channels at 1/2, 1/4 and 1/8 of the resolution, multiples of 8.
        features: width of the last hidden layer.
        dropout: probability on it.
        smoothing: of the labels.
        shift: largest random translation in pixels while training.
    """

    image_size: int = 32
    image_channels: int = 1
    num_classes: int = 10
    widths: tuple[int, int, int] = (32, 64, 96)
    features: int = 64
    dropout: float = 0.2
    smoothing: float = 0.1
    shift: int = 2

    def __post_init__(self) -> None:
        if self.image_size % 8 or any(w % 8 for w in self.widths) or len(self.widths) != 3:
            raise BadInput(
                f"ClassifierSpec: image_size {self.image_size}, widths {self.widths}; expected multiples of 8, three widths"
            )
        if not (0 <= self.dropout < 1 and 0 <= self.smoothing < 1):
            raise BadInput(f"ClassifierSpec: dropout {self.dropout}, smoothing {self.smoothing}; expected numbers in [0, 1)")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image."""
        return self.image_size, self.image_size, self.image_channels

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal spec."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClassifierSpec:
        """Inverse of `to_json`. Raises `BadInput` on anything else."""
        try:
            fields = json.loads(text)
            return cls(**{**fields, "widths": tuple(fields["widths"])})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise BadInput(f"classifier spec: {error!r} in {text[:80]!r}, expected ClassifierSpec fields") from None


PATCHES = "patches"
"""Name of the last feature map."""


class Residual(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions, (b, h, w, c) -> (b, h, w, c)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, y = x.shape[-1], x
        for init in (nn.initializers.he_normal(), nn.initializers.zeros):
            y = nn.Conv(c, (3, 3), kernel_init=init)(nn.relu(nn.GroupNorm(num_groups=8)(y)))
        return x + y


class Classifier(nn.Module):
    """Images (b, h, w, c) -> (logits (b, num_classes), features (b, features)). `train` needs a "dropout" rng.

    Attributes:
        spec: sizes.
    """

    spec: ClassifierSpec

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        for stage, width in enumerate(self.spec.widths):
            x = nn.Conv(width, (2, 2) if stage else (4, 4), strides=2)(x)
            x = Residual()(x)  # (b, h / 2, w / 2, width), then quarter, then eighth
        x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        self.sow("intermediates", PATCHES, x)
        x = x.mean((1, 2))  # (b, width)
        features = nn.relu(nn.Dense(self.spec.features)(x))
        hidden = nn.Dropout(self.spec.dropout, deterministic=not train)(features)
        return nn.Dense(self.spec.num_classes)(hidden), features


def init(spec: ClassifierSpec, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    return dict(Classifier(spec).init(key, jnp.zeros((1, *spec.image_shape)))["params"])


def augment(images: jax.Array, key: jax.Array, shift: int) -> jax.Array:
    """Images (b, h, w, c), each mirrored by chance and moved by up to `shift` pixels; background, -1, moves in."""
    flip_key, shift_key = jax.random.split(key)
    b, h, w, c = images.shape
    flips = jax.random.bernoulli(flip_key, 0.5, (b, 1, 1, 1))
    images = jnp.where(flips, images[:, :, ::-1], images)
    offsets = jax.random.randint(shift_key, (b, 2), 0, 2 * shift + 1)
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), constant_values=-1.0)
    return jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), (h, w, c)))(padded, offsets)


def classifier_loss(spec: ClassifierSpec) -> Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]:
    """Loss function (params, batch, key) -> (loss, metrics): cross entropy with smoothed labels on augmented images.

    `batch` is {"image": (b, h, w, c) in [-1, 1], "label": (b,) int32}. Metrics: "accuracy" on the augmented batch.
    """

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        augment_key, dropout_key = jax.random.split(key)
        images = augment(batch["image"], augment_key, spec.shift)
        logits, _ = Classifier(spec).apply({"params": params}, images, True, rngs={"dropout": dropout_key})  # pyright: ignore
        targets = jax.nn.one_hot(batch["label"], spec.num_classes)
        targets = targets * (1 - spec.smoothing) + spec.smoothing / spec.num_classes
        cross_entropy = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        return cross_entropy, {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    return loss


def patches(spec: ClassifierSpec, params: Params, images: jax.Array) -> jax.Array:
    """The last feature map of images (b, h, w, c) in [-1, 1], row by row: (b, h / 8 * w / 8, widths[-1]) float32."""
    noted: Any = Classifier(spec).apply({"params": params}, images, mutable="intermediates")[1]
    found = noted["intermediates"][PATCHES][0]  # (b, h / 8, w / 8, width)
    return found.reshape(len(images), -1, found.shape[-1])


def classify(
    spec: ClassifierSpec, params: Params, images: np.ndarray | jax.Array, batch_size: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, num_classes) and features (n, features), float32, of images (n, h, w, c) in [-1, 1], in chunks."""
    if images.ndim != 4 or images.shape[1:] != spec.image_shape or not len(images):
        raise BadInput(f"images to classify: shape {images.shape}, expected at least one of shape {spec.image_shape}")
    run = jax.jit(lambda x: Classifier(spec).apply({"params": params}, x), compiler_options=compile_options())
    parts: list[Any] = [run(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return np.concatenate([np.asarray(p[0]) for p in parts]), np.concatenate([np.asarray(p[1]) for p in parts])


def accuracy(spec: ClassifierSpec, params: Params, images: np.ndarray | jax.Array, labels: np.ndarray) -> float:
    """Share of images (n, h, w, c) whose most likely class is their label (n,)."""
    logits, _ = classify(spec, params, images)
    return float((logits.argmax(-1) == labels).mean())
