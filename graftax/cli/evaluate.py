"""`graftax evaluate`: score a model's samples with the demo's classifier.

Prints the share of class-conditional samples that the classifier calls by their class, and the Fréchet distance between
its features of the samples and of real images (not the FID of papers: other features, other images).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, or "demo"')
    parser.add_argument("--count", type=int, default=1000, help="samples, classes in turn (default: %(default)s)")
    parser.add_argument("--source", default="fashion_mnist", help="real images to compare with (default: %(default)s)")
    parser.add_argument("--classifier", default="demo", metavar="PATH", help="default: the shipped one")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    options.add_sampling(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Draw, decode, judge, print."""
    import dataclasses

    from graftax.checkpoint.files import replacing
    from graftax.cli import drawing, images, stages
    from graftax.cli.schema import DataConfig
    from graftax.errors import BadInput

    settings = options.sampling_of(args)
    real = images.load(DataConfig(source=args.source))
    model = stages.open_model(args.model, **options.overrides_of(args))
    decode = drawing.decoder_for(model.spec, args.latents)
    if decode is None:
        raise BadInput(f"model {args.model}: its latents have no decoder here, expected --latents")
    judge = drawing.demo_judge(real.train, args.classifier)
    labels = drawing.balanced_labels(args.count, model.spec.num_classes)
    score = judge.score(decode(drawing.draw(model, labels, settings)), labels)
    print(f"{args.model}: class accuracy {score.accuracy:.1%}, Fréchet distance {score.frechet:.3g}, {score.count} samples")
    print(f"({settings}; reference: {len(real.train):,} real images, features of the demo's classifier)")
    if args.json:
        numbers = {**dataclasses.asdict(score), "sampling": dataclasses.asdict(settings)}
        with replacing(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(numbers, indent=1) + "\n")
