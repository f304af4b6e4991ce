"""Scoring a model: its samples in a folder, judged in every feature space that was asked for, results beside them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.tree_util import Partial

from graftax.checkpoint.dinov2 import load_dinov2
from graftax.checkpoint.files import sha256, sha256_of_arrays
from graftax.checkpoint.vae import find_vae, read_vae
from graftax.cli.pixels import decoding, images, nets
from graftax.cli.pixels.drawing import demo_judge
from graftax.cli.schema import DataConfig
from graftax.errors import BadInput
from graftax.evaluate import adm
from graftax.evaluate.extract import BATCH, extract
from graftax.evaluate.image_file import ImageFile, open_images
from graftax.evaluate.metrics import Gaussian, Moments, frechet_distance
from graftax.evaluate.protocol import DIGITS, Protocol
from graftax.evaluate.result import Result, environment
from graftax.evaluate.sample_set import SampleSet, draw_set, write_npz
from graftax.models import Model, dinov2

Suite = tuple[adm.Network, adm.Reference]
FD = "FD"
"""Fréchet distance in DINOv2's features, a metric beside those of the ADM suite."""


@dataclasses.dataclass(frozen=True)
class Judges:
    """What samples are scored with: `source`, real images for the small classifier `classifier`; and the file of a
    `reference` batch, for the ADM suite with the file of `inception`'s weights and the names of `metrics` to compute, for
    the Fréchet distance in DINOv2's features with a folder `dino` as transformers writes it."""

    source: str
    classifier: str
    reference: str | None = None
    inception: str | None = None
    dino: str | None = None
    metrics: tuple[str, ...] = adm.METRICS


@dataclasses.dataclass(frozen=True)
class Dino:
    """DINOv2's `features` of uint8 images, `dims` numbers each, the name of that `space`, and the `reference` images."""

    features: Partial
    dims: int
    space: str
    reference: ImageFile

    def check(self, name: str, count: int, shape: tuple[int, ...]) -> None:
        """Raise `BadInput` unless `count` images of `shape` (h, w, c), called `name`, compare with the reference."""
        _check_size(shape, self.reference)
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


def _check_size(shape: tuple[int, ...], reference: ImageFile | None) -> None:
    """Raise `BadInput` unless a reference's images, where it has any, are of the samples' `shape` (h, w, c)."""
    if reference is not None and reference.shape[1:] != shape:
        sizes = f"{reference.shape[1:]}, those of the samples {shape}"
        raise BadInput(f"{reference.path}: its images are {sizes}; expected one size")


def evaluate(
    name: str, model: Model, protocol: Protocol, latents: str, judges: Judges, folder: Path, part: int
) -> list[Result]:
    """Draw what is missing of the samples in `folder`, score them, keep and return the results.

    `latents` as in `decoding.decoder_for`; `part`: images per compiled call. Where several processes run, the first one
    scores and the others return nothing. Raises `BadInput` before anything is drawn where model, decoder, judges and folder
    do not fit together.
    """
    decode = decoding.decoder_for(model.spec, latents, name)
    if decode is None:
        raise BadInput(f"model {name}: its latents have no decoder here, expected --latents")
    protocol = dataclasses.replace(protocol, decoder=decoder_name(model, latents, name))
    real, suite, dino = images.load(DataConfig(source=judges.source)), open_suite(judges), open_dino(judges)
    shape = decode(np.zeros((1, model.spec.input_size, model.spec.input_size, model.spec.in_channels), np.float32)).shape[1:]
    small = nets.load_classifier(judges.classifier)[0]
    fits = small.image_shape == shape
    if not fits and suite is None and dino is None:
        raise BadInput(f"model {name}: no judge for images of {shape}, expected --reference with --inception or --dino")
    if fits and protocol.count <= small.features:
        raise BadInput(f"count: got {protocol.count}, the classifier's {small.features} features expect more than that")
    _check(name, protocol.count, shape, suite, dino, judges.metrics)
    identity = sha256_of_arrays(model.params)
    samples = draw_set(model, protocol, decode, folder, identity=identity, part=part)
    found = []
    if jax.process_index() == 0:
        found += [_judged(protocol, samples, judges, real)] if fits else []
        found += _against_reference(protocol, samples, suite, dino, judges)
    results = [Result(name, identity, model.spec, named, scores, environment()) for named, scores in found]
    for result in results:
        result.save(folder)
    multihost_utils.sync_global_devices("graftax: samples scored")  # one that ends early would be taken for lost
    return results


def _check(
    name: str, count: int, shape: tuple[int, ...], suite: Suite | None, dino: Dino | None, metrics: tuple[str, ...]
) -> None:
    """Raise `BadInput` unless `count` images of `shape` (h, w, c) of the model `name` can be compared with the reference."""
    if (suite or dino) and shape[2] != 3:
        raise BadInput(f"model {name}: its images are {shape}; InceptionV3 and DINOv2 expect 3 channels: red, green, blue")
    if suite is not None:
        adm.check_suite(*suite, metrics, "samples", count)
        _check_size(shape, suite[1].images)
    if dino is not None:
        dino.check("samples", count, shape)


def decoder_name(model: Model, latents: str, name: str) -> str:
    """What turns samples into pixels, by name and hash, for the protocol."""
    chosen = decoding.resolve(model.spec, latents, name)
    if chosen is None or chosen == "none":
        return "none"
    folder = None if chosen == "demo" else find_vae(chosen)
    if folder:
        return f"VAE {folder.name} {read_vae(folder)[2].sha256[:DIGITS]}"
    return f"autoencoder {Path(chosen).name} {sha256_of_arrays(nets.load_autoencoder(chosen)[1])[:DIGITS]}"


def _judged(
    protocol: Protocol, samples: SampleSet, judges: Judges, real: images.Images
) -> tuple[Protocol, dict[str, float]]:
    """Class accuracy and Fréchet distance in the features of the small classifier."""
    judge = demo_judge(real.train, judges.classifier)
    drawn, labels = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    score = judge.score(drawn.astype(np.float32) / 127.5 - 1, labels)
    space = f"classifier {Path(judges.classifier).name} {sha256_of_arrays(judge.params)[:DIGITS]}"
    named = dataclasses.replace(protocol, features=space, reference=f"{judges.source}, {len(real.train):,} images")
    return named, {"class accuracy": score.accuracy, "Fréchet": score.frechet}


def open_suite(judges: Judges) -> Suite | None:
    """Inception's weights and the reference batch; None where they were not asked for."""
    if judges.reference is None or judges.inception is None:
        return None
    return adm.open_network(judges.inception), adm.open_reference(judges.reference)


def open_dino(judges: Judges) -> Dino | None:
    """DINOv2 and the images of the reference; None where it was not asked for. Raises `BadInput` on one without images."""
    if judges.reference is None or judges.dino is None:
        return None
    reference, folder = open_images(judges.reference), Path(judges.dino)
    if reference is None:
        raise BadInput(f"{judges.reference}: no images (arr_0) in it, expected them: its moments are Inception's")
    spec, params, source = load_dinov2(folder)
    features = Partial(functools.partial(dinov2.features, spec), params)
    return Dino(features, spec.hidden_size, f"DINOv2 {folder.resolve().name} {source.sha256[:DIGITS]}", reference)


def _against_reference(
    protocol: Protocol, samples: SampleSet, suite: Suite | None, dino: Dino | None, judges: Judges
) -> list[tuple[Protocol, dict[str, float]]]:
    """The ADM suite and DINOv2's distance, of the samples as one file."""
    if judges.reference is None:
        return []
    path, drawn, found = Path(judges.reference), open_images(write_npz(samples)), {}
    assert drawn is not None
    if suite is not None:
        space = f"InceptionV3 {suite[0].sha256[:DIGITS]}"
        found[space] = adm.adm_scores(suite[0], drawn, suite[1], judges.metrics, show=True).scores
    if dino is not None:
        found[dino.space] = {FD: dino.distance(drawn)}
    named = dataclasses.replace(protocol, reference=f"{path.name} {sha256(path)[:DIGITS]}")
    return [(dataclasses.replace(named, features=space), scores) for space, scores in found.items()]
