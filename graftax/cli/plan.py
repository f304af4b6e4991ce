"""`graftax plan`: what to graft for a goal: so many times faster, or so much of the FLOPs or parameters left.

    graftax plan demo --flops 0.9
    graftax plan DiT-XL-2-256x256.pt --faster 1.2 --device v5e
    graftax plan demo --params 0.8 --config configs/demo_plan.py

Times every operator that fits at the model's own size, on the device at hand or by the roofline of --device, and measures
the harm of each site: with --config on its data, after its stage 1; without on noise, after a least-squares fit. Prints a
small front of grafts by speed, size and harm. The folder gets plan.html, plan.json, and the configs plan_1.py, .. for
`graftax graft`, `distill` and `finetune`. --check fine-tunes what was considered and says how well harm foretold it.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, "demo" or "scenes"')
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--faster", type=float, metavar="X", help="times the speed")
    goal.add_argument("--flops", type=float, metavar="SHARE", help="of the FLOPs that is left")
    goal.add_argument("--params", type=float, metavar="SHARE", help="of the parameters, likewise")
    parser.add_argument("--operator", action="append", default=[], metavar="OP", help="only this one; may be given again")
    parser.add_argument("--device", metavar="CHIP", help="by the roofline of v5e, h100, .. (default: measured here)")
    parser.add_argument("--batch", type=int, default=1, help="images per pass (default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="(default: float32; bfloat16 with --device)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="harm is measured on (default: %(default)s)")
    parser.add_argument("--check", type=int, default=0, metavar="SEEDS", help="fine-tune with so many seeds; wants --config")
    options.add_config(parser, "config file with data and both stages", required=False)
    parser.add_argument("--out", metavar="FOLDER", help="default: the config's workdir, else runs/plan")
    options.add_overwrite(parser)
    options.add_json(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, choose, write, print."""
    from graftax.analyze.plan import GOALS, Goal
    from graftax.errors import BadInput
    from graftax.pages import plan_page as page
    from graftax.study import plan as plans
    from graftax.study import plan_check, stages, teaching
    from graftax.train.chips import find_chip

    goal = next(Goal(name, value) for name in GOALS if (value := getattr(args, name)) is not None)
    given = options.recipe_of(args) if args.config else None
    if args.check and not given:
        raise BadInput(f"--check: got {args.check} without --config, expected data and stages to fine-tune with")
    folder = options.own_output(args.out or (given.workdir if given else "runs/plan"), args.overwrite, page.FILE)
    chip = find_chip(args.device) if args.device else None
    model = stages.open_model(args.model, **options.overrides_of(args))
    data = options.load_data(given.distill_data) if given else None
    taught = teaching.teaching_of(model.spec, given, data, args.images, folder / "work")
    settings = {"operators": args.operator, "batch": args.batch, "rounds": args.rounds, "dtype": args.dtype}
    found = plans.plan(model, goal, taught, chip=chip, **settings)
    path = page.write(found, args.model, teaching.recipe_of(args.model, model.spec, given), folder)
    checked = [str(plan_check.check(found, given, args.check, folder / "check"))] if args.check and given else []
    options.answer(args, page.record(found), "\n\n".join([page.text(found), *checked, str(path)]))
