"""Scoring a model: its samples in a folder, judged in every feature space that was asked for, results beside them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np

from graftax.checkpoint.files import sha256
from graftax.checkpoint.vae import find_vae, read_vae
from graftax.cli import decoding, images, nets, stages
from graftax.cli.drawing import demo_judge
from graftax.cli.schema import DataConfig
from graftax.errors import BadInput
from graftax.evaluate import adm
from graftax.evaluate.image_file import open_images
from graftax.evaluate.protocol import DIGITS, Protocol
from graftax.evaluate.result import Result, environment
from graftax.evaluate.sample_set import SampleSet, draw_set, write_npz
from graftax.models import Model


@dataclasses.dataclass(frozen=True)
class Judges:
    """What samples are scored with: `source`, real images for the small classifier `classifier`; and for the ADM suite the
    files of a `reference` batch and of Inception's weights, with the names of `metrics` to compute."""

    source: str
    classifier: str
    reference: str | None = None
    inception: str | None = None
    metrics: tuple[str, ...] = adm.METRICS


def evaluate(
    name: str, model: Model, protocol: Protocol, latents: str, judges: Judges, folder: Path, part: int
) -> list[Result]:
    """Draw what is missing of the samples in `folder`, score them, keep and return the results.

    `latents` as in `decoding.decoder_for`; `part`: images per compiled call. Raises `BadInput` before anything is drawn
    where model, decoder, judges and folder do not fit together.
    """
    decode = decoding.decoder_for(model.spec, latents, name)
    if decode is None:
        raise BadInput(f"model {name}: its latents have no decoder here, expected --latents")
    protocol = dataclasses.replace(protocol, decoder=decoder_name(model, latents, name))
    real, suite = images.load(DataConfig(source=judges.source)), _open_suite(judges)
    shape = decode(np.zeros((1, model.spec.input_size, model.spec.input_size, model.spec.in_channels), np.float32)).shape[1:]
    small = nets.load_classifier(judges.classifier)[0]
    fits = small.image_shape == shape
    if not fits and suite is None:
        raise BadInput(f"model {name}: no judge for images of {shape}, expected --reference and --inception")
    if fits and protocol.count <= small.features:
        raise BadInput(f"count: got {protocol.count}, the classifier's {small.features} features expect more than that")
    if suite is not None:
        adm.check_suite(*suite, judges.metrics, "samples", protocol.count)
    identity = stages.fingerprint(model)
    samples = draw_set(model, protocol, decode, folder, identity=identity, part=part)
    if jax.process_index() != 0:
        return []
    found = [_judged(protocol, samples, judges, real)] if fits else []
    if suite is not None:
        found.append(_suite(protocol, samples, suite, judges.metrics))
    results = [Result(name, identity, model.spec, named, scores, environment()) for named, scores in found]
    for result in results:
        result.save(folder)
    return results


def decoder_name(model: Model, latents: str, name: str) -> str:
    """What turns samples into pixels, by name and hash, for the protocol."""
    chosen = decoding.resolve(model.spec, latents, name)
    if chosen is None or chosen == "none":
        return "none"
    folder = None if chosen == "demo" else find_vae(chosen)
    if folder:
        return f"VAE {folder.name} {read_vae(folder)[2].sha256[:DIGITS]}"
    return f"autoencoder {Path(chosen).name} {_tree_hash(nets.load_autoencoder(chosen)[1])}"


def _judged(
    protocol: Protocol, samples: SampleSet, judges: Judges, real: images.Images
) -> tuple[Protocol, dict[str, float]]:
    """Class accuracy and Fréchet distance in the features of the small classifier."""
    judge = demo_judge(real.train, judges.classifier)
    drawn, labels = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    score = judge.score(drawn.astype(np.float32) / 127.5 - 1, labels)
    space = f"classifier {Path(judges.classifier).name} {_tree_hash(judge.params)}"
    named = dataclasses.replace(protocol, features=space, reference=f"{judges.source}, {len(real.train):,} images")
    return named, {"class accuracy": score.accuracy, "Fréchet": score.frechet}


def _open_suite(judges: Judges) -> tuple[adm.Network, adm.Reference] | None:
    if judges.reference is None or judges.inception is None:
        return None
    return adm.open_network(judges.inception), adm.open_reference(judges.reference)


def _suite(
    protocol: Protocol, samples: SampleSet, suite: tuple[adm.Network, adm.Reference], metrics: tuple[str, ...]
) -> tuple[Protocol, dict[str, float]]:
    """The ADM suite, on the samples as one file."""
    network, reference = suite
    drawn = open_images(write_npz(samples))
    assert drawn is not None
    found = adm.adm_scores(network, drawn, reference, metrics, show=True)
    named = dataclasses.replace(
        protocol, features=f"InceptionV3 {network.sha256[:DIGITS]}",
        reference=f"{reference.path.name} {sha256(reference.path)[:DIGITS]}",
    )  # fmt: skip
    return named, found.scores


def _tree_hash(tree: object) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:DIGITS]
