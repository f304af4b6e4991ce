"""The ADM evaluation suite: FID, sFID, Inception score, precision and recall of a file of samples.

The definitions are those of OpenAI's evaluator (openai/guided-diffusion, `evaluations/evaluator.py`): network and resize
(`graftax.nets.inception`), features and their moments, splits of the Inception score, neighbours. It differs where that
is better arithmetic: moments in float64 from a stream, and two symmetric eigendecompositions in place of `sqrtm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import Partial

from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.extract import BATCH, extract
from graftax.evaluate.image_file import ImageFile, open_images, read_moments
from graftax.evaluate.inception_score import InceptionScore
from graftax.evaluate.metrics import Gaussian, Moments, frechet_distance
from graftax.evaluate.precision_recall import NEIGHBOURS as K
from graftax.evaluate.precision_recall import precision_recall
from graftax.nets.convolving import compile_options
from graftax.nets.inception import HEAD, POOL_FEATURES, SPATIAL_FEATURES, features
from graftax.nets.inception_files import load_inception

METRICS = ("IS", "FID", "sFID", "precision", "recall")
POOL_SPACE = "InceptionV3 2015-12-05, pool_3"
SPATIAL_SPACE = "InceptionV3 2015-12-05, mixed_6/conv"
MOMENTS = {"FID": (POOL_SPACE, POOL_FEATURES, "mu", "sigma"), "sFID": (SPATIAL_SPACE, SPATIAL_FEATURES, "mu_s", "sigma_s")}
NEIGHBOURS = ("precision", "recall")
SPACES = {
    "IS": "InceptionV3 2015-12-05, 1008 classes without bias",
    "FID": POOL_SPACE, "sFID": SPATIAL_SPACE, "precision": POOL_SPACE, "recall": POOL_SPACE,
}  # fmt: skip
"""What each metric is measured in."""


@dataclass(frozen=True)
class Network:
    """Inception as ADM's suite uses it.

    Attributes:
        params: its weights.
        source: name of the file that they came from.
        sha256: of that file.
    """

    params: dict[str, Any]
    source: str
    sha256: str


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        path: of its file.
        moments: by metric ("FID", "sFID"), where the file brings them.
        images: of the file, None where it has none.
    """

    path: Path
    moments: dict[str, Gaussian]
    images: ImageFile | None


@dataclass(frozen=True)
class AdmScores:
    """What the suite found.

    Attributes:
        scores: by metric, those of `METRICS` that were asked for.
        spaces: what each was measured in.
        samples: number of images.
        reference: the file they were compared with.
        inception: the file of weights.
        sha256: of the file of weights.
    """

    scores: dict[str, float]
    spaces: dict[str, str]
    samples: int
    reference: str
    inception: str
    sha256: str

    def __str__(self) -> str:
        lines = [f"{name:<11}{value:<11.6g}{self.spaces[name]}" for name, value in self.scores.items()]
        sets = f"{self.samples:,} samples against {self.reference}"
        return "\n".join([*lines, f"({sets}; weights {self.inception}, sha256 {self.sha256[:8]})"])


def open_network(path: str | Path) -> Network:
    """Inception's weights from a file (`graftax.nets.inception_files.load_inception`)."""
    params, source = load_inception(path)
    return Network(params, source.name, source.sha256)


def open_reference(path: str | Path) -> Reference:
    """A reference batch: an `.npz` with `arr_0`, or with moments, or both. Raises `BadInput` where it has neither."""
    path, found = Path(path), read_moments(path)
    images = open_images(path)
    if images is None and not found:
        raise BadInput(f"{path}: neither arr_0 nor mu, sigma, mu_s, sigma_s in it, expected a reference batch")
    kept = {}
    for name, (space, dims, mean, covariance) in MOMENTS.items() if found else ():
        if len(found[mean]) != dims:
            raise BadInput(f"{path}: {mean} has {len(found[mean])} features, expected {dims} ({space})")
        kept[name] = Gaussian(found[mean], found[covariance], None, space)
    return Reference(path, kept, images)


def adm_scores(
    network: Network, samples: ImageFile, reference: Reference, metrics: Sequence[str] = METRICS, *, batch: int = BATCH,
    show: bool = False,
) -> AdmScores:  # fmt: skip
    """Score `samples` against `reference`. All images pass the network once, `batch` at a time.

    Memory: the moments, some 100 MB; precision and recall also keep 8 kB of features per image. Raises `BadInput`, before
    anything is computed, on unknown metrics, images of two sizes, too few samples for a metric, and weights or references
    that lack what a metric needs.
    """
    _check(network, samples, reference, metrics)
    ours = _pass(network, samples, metrics, batch, "samples", show)
    left = [name for name in metrics if name != "IS" and name not in reference.moments]
    theirs = _pass(network, reference.images, left, batch, "reference", show) if reference.images and left else _Pass()
    known = reference.moments | theirs.moments
    scores = {name: frechet_distance(found, known[name]) for name, found in ours.moments.items()}
    if ours.score is not None:
        scores["IS"] = ours.score
    if ours.features is not None and theirs.features is not None:
        found = precision_recall(theirs.features, ours.features, show=show)
        scores |= dict(zip(NEIGHBOURS, found, strict=True))
    names = [name for name in METRICS if name in metrics]
    return AdmScores(
        {name: scores[name] for name in names}, {name: SPACES[name] for name in names}, len(samples),
        reference.path.name, network.source, network.sha256,
    )  # fmt: skip


@dataclass(frozen=True)
class _Pass:
    """What is known of a set of images that has passed the network: features (n, 2048) only where neighbours need them."""

    moments: dict[str, Gaussian] = field(default_factory=dict)
    score: float | None = None
    features: np.ndarray | None = None


def _pass(network: Network, images: ImageFile, metrics: Sequence[str], batch: int, label: str, show: bool) -> _Pass:
    streams = {name: Moments(dims, space) for name, (space, dims, *_) in MOMENTS.items() if name in metrics}
    score = InceptionScore() if "IS" in metrics else None
    kept = np.empty((len(images), MOMENTS["FID"][1]), np.float32) if set(metrics) & set(NEIGHBOURS) else None
    start = 0
    run = Partial(features, network.params)
    for found in extract(run, images, batch=batch, label=label, show=show, options=compile_options()):
        rows = {"FID": found.pool, "sFID": found.spatial}
        for name, stream in streams.items():
            stream.add(rows[name])
        if score is not None:
            score.add(found.logits)
        if kept is not None:
            kept[start : start + len(found.pool)] = found.pool
            start += len(found.pool)
    moments = {name: stream.result() for name, stream in streams.items()}
    return _Pass(moments, score and score.result(), kept)


def check_suite(network: Network, reference: Reference, metrics: Sequence[str], samples: str, count: int) -> None:
    """Raise `BadInput` on unknown metrics, weights or references that lack what one needs, and too few images for one.

    `samples`: what the `count` samples are called.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if not metrics or unknown:
        near = did_you_mean(unknown[0], METRICS) if unknown else ""
        raise BadInput(f"metrics {', '.join(metrics) or 'none'}: expected some of {', '.join(METRICS)}{near}")
    if "IS" in metrics and HEAD not in network.params:
        raise BadInput(f"{network.source}: no classifier in it, so no Inception score; expected metrics without IS")
    counts = {samples: count} | ({str(reference.path): len(reference.images)} if reference.images is not None else {})
    if set(metrics) & set(NEIGHBOURS):
        if reference.images is None:
            raise BadInput(f"{reference.path}: no images (arr_0) in it, expected metrics without precision and recall")
        for name, number in counts.items():
            if number <= K:
                raise BadInput(f"{name}: {number} images, precision and recall expect more than {K}")
    for metric in (name for name in MOMENTS if name in metrics):
        space, dims, *_ = MOMENTS[metric]
        for name, number in counts.items():
            if number <= dims and (name == samples or metric not in reference.moments):
                raise BadInput(f"{name}: {number} images, {metric} ({space}) expects more than {dims}")


def _check(network: Network, samples: ImageFile, reference: Reference, metrics: Sequence[str]) -> None:
    check_suite(network, reference, metrics, str(samples.path), len(samples))
    if reference.images is not None and reference.images.shape[1:] != samples.shape[1:]:
        sizes = f"{reference.images.shape[1:]}, the samples {samples.shape[1:]}"
        raise BadInput(f"{reference.path}: its images are {sizes}; expected one size")
