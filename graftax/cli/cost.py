"""`graftax cost`: what a model costs, counted for a named chip and, with --measure, timed on the devices at hand.

    graftax cost DiT-XL/2 --chip v5e --batch 8
    graftax cost demo --measure --out runs/cost
    graftax cost pixart-sigma-2048 --batch 1 --edit 'replace(blocks[8:20:2,20:28].mixer, hyena_x)'

By operator: parameters, FLOPs, the bytes that must move at least, their ratio against the chip's (the roofline), the least
time there, and the activations kept for a backward pass. Counted figures need no weights: a published name will do. With
--edit the same of the edited model, and how many times sooner its operators may be done, a prediction.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, "demo", or a published name (graftax zoo)')
    parser.add_argument(
        "--chip", default="v5e", help="chip of the roofline: v4, v5e, v5p, v6e, h100 ... (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="images per pass (default: %(default)s)")
    parser.add_argument(
        "--edit", action="append", default=[], metavar="EDIT", help="count the model after this edit too; may be given again"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the bytes (default: %(default)s)"
    )
    parser.add_argument(
        "--measure", action="store_true", help="also time operators, blocks and the whole model here, in float32"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=250, help="sampling steps of the time per image (default: %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="also write cost.json and roofline.png there")
    options.add_overwrite(parser, "what --out holds")
    options.add_json(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Count, time if asked to, print, write."""
    from graftax import api
    from graftax.errors import BadInput
    from graftax.evaluate.roofline import roofline
    from graftax.models import Model
    from graftax.pages import cost_page, describe
    from graftax.surgery.config import GraftConfig
    from graftax.train.chips import find_chip

    chip = find_chip(args.chip)
    out = options.own_output(args.out, args.overwrite, cost_page.FILE) if args.out else None
    for name in ("batch", "rounds", "steps"):
        if getattr(args, name) < 1:
            raise BadInput(f"{name}: got {getattr(args, name)}, expected 1 or more")
    if args.measure and args.edit:
        raise BadInput("cost: got --measure and --edit, expected one of the two: edits are counted, not timed")
    edit = GraftConfig(edits=tuple(args.edit)).edit if args.edit else None
    model = describe.open_described(args.model, options.overrides_of(args))
    if args.measure and not isinstance(model, Model):
        raise BadInput(f"--measure: {args.model} is a published name without weights here, expected a file or folder")
    spec, _ = describe.spec_and_meta(model)
    after = edit.on(spec) if edit else None
    rows, edited = (roofline(one, args.batch, args.dtype) if one else [] for one in (spec, after))
    texts, times = [cost_page.counted(rows, chip, args.batch, args.dtype)], None
    if edited:
        table = cost_page.counted(edited, chip, args.batch, args.dtype)
        texts.append(f"\nafter {edit}\n{table}\n\n{cost_page.gain(rows, edited, chip)}")
    if args.measure and isinstance(model, Model):
        from graftax.evaluate.latency import latencies

        times = latencies(api.place(model), args.batch, args.rounds)
        texts.append(f"\n{cost_page.measured(times, args.batch, args.steps)}")
    record = cost_page.record(rows, chip, args.batch, args.dtype, times, edited)
    if out:
        texts.append(str(cost_page.write(out, record, [*rows, *edited], chip)))
    options.answer(args, record, "\n".join(texts))
