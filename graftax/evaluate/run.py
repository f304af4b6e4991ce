"""Scoring a model: its samples in a folder, judged in every feature space that was asked for, results beside them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from graftax.checkpoint.files import sha256, sha256_of_arrays
from graftax.checkpoint.hub import called
from graftax.checkpoint.shipped import is_shipped
from graftax.data.config import DataConfig
from graftax.data.pixels import decoding, images
from graftax.errors import BadInput
from graftax.evaluate import adm
from graftax.evaluate.dino import FD, Dino, check_size, read_dino
from graftax.evaluate.drawing import ACCURACY, FRECHET, demo_judge
from graftax.evaluate.image_file import open_images
from graftax.evaluate.protocol import DIGITS, Protocol
from graftax.evaluate.result import SCORES, Result, environment
from graftax.evaluate.sample_set import SampleSet, draw_set, remove_set, write_npz
from graftax.models import Model
from graftax.nets.small import load_autoencoder, load_classifier
from graftax.nets.vae_files import find_vae, read_vae, stats_path

Suite = tuple[adm.Network, adm.Reference]


@dataclasses.dataclass(frozen=True)
class Judges:
    """What samples are scored with.

    Attributes:
        source: real images for the small classifier.
        classifier: that classifier, "demo" or a path.
        reference: file of a reference batch, for the ADM suite and for DINOv2.
        inception: file of the weights for the ADM suite.
        dino: folder of a DINOv2 as transformers writes it, for the Fréchet distance in its features.
        metrics: of the ADM suite.
    """

    source: str
    classifier: str
    reference: str | None = None
    inception: str | None = None
    dino: str | None = None
    metrics: tuple[str, ...] = adm.METRICS


def evaluate(
    name: str, model: Model, protocol: Protocol, latents: str, judges: Judges, folder: Path, part: int, *,
    afresh: bool = False,
) -> list[Result]:  # fmt: skip
    """Draw what is missing of the samples in `folder`, score them, keep and return the results.

    `latents` as in `decoding.decoder_for`; `part`: images per compiled call. `afresh`: samples and scores that
    the folder holds are removed first. Where several processes run, the first one
    scores and the others return nothing. Raises `BadInput` before anything is drawn where model, decoder, judges and folder
    do not fit together.
    """
    decode = decoding.decoder_for(model.spec, latents, name)
    if decode is None:
        raise BadInput(f"model {name}: its latents have no decoder here, expected --latents")
    protocol = dataclasses.replace(protocol, decoder=decoder_name(model, latents, name))
    real, suite, dino = images.load(DataConfig(source=judges.source)), open_suite(judges), open_dino(judges)
    shape = decode(np.zeros((1, *model.spec.image_shape), np.float32)).shape[1:]
    small = load_classifier(judges.classifier)[0]
    fits = small.image_shape == shape
    if not fits and suite is None and dino is None:
        raise BadInput(f"model {name}: no judge for images of {shape}, expected --reference with --inception or --dino")
    if fits and protocol.count <= small.features:
        raise BadInput(f"count: got {protocol.count}, the classifier's {small.features} features expect more than that")
    _check(name, protocol.count, shape, suite, dino, judges.metrics)
    identity = sha256_of_arrays(model.params)
    if afresh and jax.process_index() == 0:
        remove_set(folder)
        shutil.rmtree(folder / SCORES, ignore_errors=True)
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
        check_size(shape, suite[1].images)
    if dino is not None:
        dino.check("samples", count, shape)


def decoder_name(model: Model, latents: str, name: str) -> str:
    """What turns samples into pixels, by name and hash, for the protocol."""
    chosen = decoding.resolve(model.spec, latents, name)
    if chosen is None or chosen == "none":
        return "none"
    folder = None if is_shipped(chosen, "autoencoder") else find_vae(chosen)
    if folder:
        weights, stats = read_vae(folder, decoding.vae_like(model.spec))[2].sha256[:DIGITS], stats_path(folder)
        normalised = f" {stats.name} {sha256(stats)[:DIGITS]}" if stats.is_file() else ""
        return f"VAE {called(folder)} {weights}{normalised}"
    return f"autoencoder {Path(chosen).name} {sha256_of_arrays(load_autoencoder(chosen)[1])[:DIGITS]}"


def _judged(
    protocol: Protocol, samples: SampleSet, judges: Judges, real: images.Images
) -> tuple[Protocol, dict[str, float]]:
    """Class accuracy and Fréchet distance in the features of the small classifier."""
    judge = demo_judge(real.train, judges.classifier)
    drawn, labels = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    score = judge.score(drawn.astype(np.float32) / 127.5 - 1, labels)
    space = f"classifier {Path(judges.classifier).name} {sha256_of_arrays(judge.params)[:DIGITS]}"
    named = dataclasses.replace(protocol, features=space, reference=f"{judges.source}, {len(real.train):,} images")
    return named, {ACCURACY.title: score[ACCURACY], FRECHET.short: score[FRECHET]}


def open_suite(judges: Judges) -> Suite | None:
    """Inception's weights and the reference batch; None where they were not asked for."""
    if judges.reference is None or judges.inception is None:
        return None
    return adm.open_network(judges.inception), adm.open_reference(judges.reference)


def open_dino(judges: Judges) -> Dino | None:
    """DINOv2 and the images of the reference; None where it was not asked for. Raises `BadInput` on one without images."""
    if judges.reference is None or judges.dino is None:
        return None
    return read_dino(judges.reference, judges.dino)


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


__all__ = ["FD", "Dino", "Judges", "Suite", "decoder_name", "evaluate", "open_dino", "open_suite"]
