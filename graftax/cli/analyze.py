"""`graftax analyze`: look into a model: locality of attention, activations, groups of layers, layers as painters.

    graftax analyze demo                                       everything below in runs/analyze/report.html
    graftax analyze DiT-XL-2-256x256.pt --what locality --samples 250 --out locality/
    graftax analyze demo --what ablation --config configs/demo_graft.py

locality      share of each block's attention within k tokens, the sweep over k, and the most and least local blocks as
              text for `graftax graft --edit`
activations   mean, spread, kurtosis and largest value of every operator's output, by layer and timestep
similarity    cosine of all residual states with each other, cut into groups
painters      the output's error when layers are skipped, repeated, reversed, shuffled or run in parallel, on a grid of
              spans; and what each order paints
ablation      chosen layers grafted onto themselves and taught (stage 1) with L1, L2 and Huber; takes data and settings of
              stage 1 from a config, and is not part of "everything"

The first four need no data: they watch the model draw samples. The folder gets analysis.json, pictures, report.html. An
interrupted ablation continues where the same command is run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from graftax.cli import options
from graftax.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from graftax.spec import ModelSpec
    from graftax.study.ablation import Ablation
    from graftax.study.analysis import Settings

PARTS = ("locality", "activations", "similarity", "painters")
ABLATION = "ablation"
FOUND = "analysis.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, or "demo"')
    parser.add_argument(
        "--what", default=",".join(PARTS), metavar="A,B,..", help="parts of the analysis (default: %(default)s)"
    )
    parser.add_argument("--out", default="runs/analyze", metavar="FOLDER", help="default: %(default)s")
    options.add_overwrite(parser, "the analysis in --out")
    parser.add_argument("--samples", type=int, default=50, metavar="N", help="samples watched (default: %(default)s)")
    parser.add_argument("--k", type=int, help="width of the band (default: an eighth of the tokens, the paper's 32 of 256)")
    parser.add_argument("--share", type=int, default=50, metavar="PERCENT", help="of the blocks, in rankings (default: 50)")
    parser.add_argument(
        "--painted", type=int, default=8, metavar="N", help="samples that strategies are measured on (default: %(default)s)"
    )
    parser.add_argument(
        "--orders", type=int, default=10, metavar="N", help="random orders (default: %(default)s, as in the paper)"
    )
    parser.add_argument("--shown", type=int, default=10, metavar="N", help="images per strategy (default: %(default)s)")
    options.add_config(parser, "config file, for the ablation", required=False)
    parser.add_argument("--slots", default="mixer,mlp", help="operators of the ablation (default: %(default)s)")
    parser.add_argument("--blocks", metavar="A,B,..", help="blocks of the ablation (default: where the paper's layers are)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of the ablation (default: %(default)s)")
    options.add_sampling(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Measure what was asked for, write the folder, print what was found."""
    from graftax.checkpoint.files import filling
    from graftax.data.pixels import decoding
    from graftax.pages import analysis_page as report
    from graftax.study import ablation as ablations
    from graftax.study import stages
    from graftax.study.parts import measure

    parts = _parts(args)
    if not 1 <= args.share <= 100:
        raise BadInput(f"--share: got {args.share}, expected 1..100 percent")
    ablation = _ablation(args, ABLATION in parts)
    folder = options.own_output(args.out, args.overwrite, FOUND)  # before minutes of work in vain
    overrides = options.overrides_of(args)
    model = stages.open_model(args.model, lambda spec: _vet(args, spec, parts, ablation), **overrides)
    settings = _settings(args, model.spec)
    decode = decoding.decoder_for(model.spec, args.latents, args.model)
    found, painted = measure(model, parts, settings)
    if ablation is not None:
        found[ABLATION] = ablations.measure(model, ablation, folder)
    images = {name: decode(drawn) for name, drawn in painted.items()} if decode else {}
    found = {"model": args.model, "spec": json.loads(model.spec.to_json()), "protocol": dataclasses.asdict(settings)} | found
    with filling(folder) as fresh:
        (fresh / FOUND).write_text(json.dumps(found, indent=1) + "\n")
        page = report.write(found, images, fresh)
    (folder / ablations.PARTIAL).unlink(missing_ok=True)
    print("\n" + "\n".join(report.verdict(found)))
    print(f"Report: {folder / page.name}")


def _parts(args: argparse.Namespace) -> list[str]:
    parts = args.what.split(",")
    if unknown := [part for part in parts if part not in (*PARTS, ABLATION)]:
        known = (*PARTS, ABLATION)
        raise BadInput(f"--what: got {unknown[0]!r}, expected some of {', '.join(known)}{did_you_mean(unknown[0], known)}")
    return parts


def _vet(args: argparse.Namespace, spec: ModelSpec, parts: list[str], ablation: Ablation | None) -> None:
    """Raise `BadInput` where a part cannot be done on this model, before any of it runs."""
    from graftax.blocks import tapped_slots
    from graftax.data.pixels import images

    settings = _settings(args, spec)
    if "locality" in parts and settings.k is not None and not 0 <= settings.k < spec.tokens:
        raise BadInput(f"--k: got {settings.k}, expected 0..{spec.tokens - 1} of {spec.tokens} tokens")
    attention = sum(op.kind == "mha" for block in spec.blocks for _, op in block.ops)
    if "locality" in parts and not attention:
        raise BadInput("--what locality: the model has no mixer 'mha' left, expected at least one")
    if "locality" in parts and attention * settings.share < 0.5:
        raise BadInput(f"--share: {settings.share:.0%} of {attention} blocks is none, expected more")
    if "painters" in parts and len(spec.program) < 3:
        raise BadInput(f"--what painters: the program has {len(spec.program)} steps, expected 3 or more")
    if ablation is None:
        return
    if unknown := [slot for slot in ablation.slots if slot not in tapped_slots(spec)]:
        known = tapped_slots(spec)
        raise BadInput(f"--slots: got {unknown[0]!r}, expected some of {', '.join(known)}{did_you_mean(unknown[0], known)}")
    if outside := [i for i in ablation.blocks or () if not 0 <= i < spec.depth]:
        raise BadInput(f"--blocks: got {outside[0]}, expected 0..{spec.depth - 1}")
    images.check_fit(ablation.data, spec)


def _settings(args: argparse.Namespace, spec: ModelSpec) -> Settings:
    from graftax.study.analysis import Settings

    return Settings(
        sampling=options.sampling_of(args, spec), samples=args.samples, painted=args.painted, shown=args.shown,
        orders=args.orders, k=args.k, share=args.share / 100,
    )  # fmt: skip


def _ablation(args: argparse.Namespace, wanted: bool) -> Ablation | None:
    """What the ablation is to do; None where there is none."""
    from graftax.study.ablation import Ablation

    if wanted != (args.config is not None):
        raise BadInput(
            f"--config: {'missing, the ablation' if wanted else 'given, but only the ablation'} takes data from it"
        )
    if args.seeds < 1:
        raise BadInput(f"--seeds: got {args.seeds}, expected 1 or more")
    slots, blocks = tuple(args.slots.split(",")), _blocks(args.blocks)
    if not wanted:
        return None
    recipe = options.recipe_of(args)
    return Ablation(recipe, options.load_data(recipe.distill_data), slots, blocks, args.seeds)


def _blocks(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"--blocks: got {text!r}, expected block numbers like 0,7,16") from None
