"""`graftax evaluate`: draw a model's samples and score them, or score a file of samples.

    graftax evaluate demo --out runs/eval/teacher
    graftax evaluate model.pt --latents sd-vae-ft-ema --sampler ddpm --steps 250 --classes random --count 50000 \\
        --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception.pth --out runs/eval/xl2
    graftax evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception.pth
    graftax evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --dino dinov2-large

With --reference and --inception: FID, sFID, Inception score, precision and recall as OpenAI's evaluator defines them, in
the features of these InceptionV3 weights. With --reference and --dino: FD, the Fréchet distance in class tokens of DINOv2
(published distances are of its ViT-L/14, against a data set's images; the reference needs images, not only moments). Where
the images are the demo's: the share of samples that the small classifier calls by their class, and the Fréchet distance
between its features of the samples and of real images (not the FID of papers: other features, other images).

--out keeps samples, scores and the protocol that gave them. Interrupted, the same command continues and ends with the same
numbers, and what belongs to another model or protocol is refused; --overwrite begins afresh. Several hosts share the work in
a folder that all see. `graftax compare` and `graftax report` read such folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftax.cli import options
from graftax.errors import BadInput

if TYPE_CHECKING:
    from graftax.evaluate.result import Result
    from graftax.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", nargs="?", help='.pt, .safetensors, graftax folder, or "demo"')
    parser.add_argument("--samples", metavar="NPZ", help="score these images instead: arr_0 (n, h, w, 3) uint8")
    parser.add_argument("--reference", metavar="NPZ", help="ADM's reference batch: arr_0, or mu, sigma, .., or both")
    parser.add_argument("--inception", metavar="FILE", help="its weights: pytorch-fid's .pth or jax-fid's .pickle")
    parser.add_argument("--dino", metavar="FOLDER", help="DINOv2 as transformers writes it: config.json, model.safetensors")
    parser.add_argument("--metrics", metavar="NAMES", help="of the suite (default: IS,FID,sFID,precision,recall)")
    parser.add_argument("--count", type=int, default=1000, help="samples to draw (default: %(default)s)")
    parser.add_argument("--classes", choices=("balanced", "random"), default="balanced", help="default: %(default)s")
    parser.add_argument(
        "--rounding", choices=("nearest", "truncate"), default="nearest", help="to bytes (default: as DiT's code)"
    )
    parser.add_argument(
        "--source", default="fashion_mnist", help="real images of the classifier's score (default: %(default)s)"
    )
    parser.add_argument("--classifier", default="demo", metavar="PATH", help="default: the shipped one")
    parser.add_argument("--out", metavar="FOLDER", help="keep samples and scores there, and continue there")
    options.add_overwrite(parser, "the samples and scores in --out")
    options.add_json(parser)
    options.add_sampling(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Score what was given."""
    _check(args)
    _file(args) if args.model is None else _model(args)


def _check(args: argparse.Namespace) -> None:
    """Raise `BadInput` that says what is missing or too much."""
    network = "--inception or --dino, the network that images are compared in"
    if args.model is None and args.samples is None:
        raise BadInput("evaluate: expected a model, or --samples with an .npz of images")
    if args.model is not None and args.samples is not None:
        raise BadInput(f"evaluate: got the model {args.model} and --samples, expected one of them")
    given = args.inception is not None or args.dino is not None
    if args.reference is None and (given or args.samples is not None):
        what = "--samples" if args.samples is not None else "--inception" if args.inception is not None else "--dino"
        more = "" if given else f", and {network}"
        raise BadInput(f"evaluate {what}: --reference is missing, the images or moments to compare with{more}")
    if args.reference is not None and not given:
        raise BadInput(f"evaluate --reference: missing is {network}")
    if args.metrics is not None and args.inception is None:
        raise BadInput(f"--metrics: got {args.metrics!r} without --inception, to which they belong")
    if args.samples is not None and (args.out is not None or args.overwrite):
        raise BadInput("evaluate --out: keeps a model's samples, expected a model in place of --samples")


def _file(args: argparse.Namespace) -> None:
    """Read, measure, print."""
    import dataclasses

    from graftax.evaluate import adm
    from graftax.evaluate import run as evaluate_run
    from graftax.evaluate.image_file import open_images

    samples = open_images(args.samples)
    if samples is None:
        raise BadInput(f"{args.samples}: no images (arr_0) in it, expected samples")
    judges = _judges(args)
    suite, dino = evaluate_run.open_suite(judges), evaluate_run.open_dino(judges)
    if dino is not None:
        dino.check(args.samples, len(samples), samples.shape[1:])
    record: dict[str, Any] = {"scores": {}, "spaces": {}, "samples": len(samples), "reference": Path(args.reference).name}
    texts = []
    if suite is not None:
        found = adm.adm_scores(suite[0], samples, suite[1], judges.metrics, batch=args.batch_size, show=True)
        texts.append(str(found))
        record |= dataclasses.asdict(found)
    if dino is not None:
        distance = dino.distance(samples, args.batch_size)
        texts.append(f"{evaluate_run.FD:<11}{distance:<11.6g}{dino.space}")
        texts.append(f"({len(samples):,} samples against {record['reference']}, {len(dino.reference):,} images)")
        record["scores"][evaluate_run.FD], record["spaces"][evaluate_run.FD] = distance, dino.space
    options.answer(args, record, "\n".join(texts))


def _model(args: argparse.Namespace) -> None:
    """Draw what is missing, judge, print."""
    import dataclasses

    import jax

    from graftax.checkpoint.files import scratch
    from graftax.evaluate import run as evaluate_run
    from graftax.evaluate import sample_set
    from graftax.evaluate.protocol import Protocol
    from graftax.study import stages

    protocol = Protocol(seed=args.seed, count=args.count, labels=args.classes, rounding=args.rounding)
    if args.out is None and jax.process_count() > 1:
        raise BadInput("evaluate: several hosts share the samples, expected --out and a folder that all of them see")
    # What is there of the same samples is continued, so it may be there; `draw_set` refuses another's.
    out = options.own_output(args.out, True, sample_set.INDEX) if args.out else None
    model = stages.open_model(args.model, lambda spec: _vet(args, spec), **options.overrides_of(args))
    protocol = dataclasses.replace(protocol, sampling=options.sampling_of(args, model.spec).sampling)
    with scratch() as temporary:
        folder = out or temporary
        results = evaluate_run.evaluate(
            args.model, model, protocol, args.latents, _judges(args), folder, args.batch_size, afresh=args.overwrite
        )
    if results:  # of several hosts only the first one scores
        record = {"results": [result.record() for result in results]}
        options.answer(args, record, "\n".join(map(_lines, results)))


def _vet(args: argparse.Namespace, spec: ModelSpec) -> None:
    if not spec.classes:
        raise BadInput(f"model {args.model}: takes texts, expected one of classes; `graftax geneval` judges those of texts")
    options.sampling_of(args, spec)


def _lines(result: Result) -> str:
    """One feature space's scores, without a line end."""
    from graftax.evaluate.tables import aligned

    scores = aligned([[k, f"{v:.6g}"] for k, v in result.scores.items()])
    about = f"(against {result.protocol.reference}; {result.protocol}; protocol {result.protocol.hash})"
    return "\n".join([f"{result.protocol.features}", *scores, about])


def _judges(args: argparse.Namespace) -> Any:
    """The `Judges` of the arguments."""
    from graftax.evaluate.adm import METRICS
    from graftax.evaluate.run import Judges

    metrics = tuple(args.metrics.split(",")) if args.metrics else METRICS
    return Judges(args.source, args.classifier, args.reference, args.inception, args.dino, metrics)
