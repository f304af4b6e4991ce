"""`graftax demo`: graft, distil, fine-tune, sample, score and show, on a shipped model.

    graftax demo                    a DiT that draws garments
    graftax demo --what scenes      a PixArt that draws what a sentence says

Everything is offline and takes minutes on two cores. The report folder gets report.html, its pictures, results.json and
the grafted models. Running again repeats the judging and skips finished training.
"""

from __future__ import annotations

import argparse

from graftax.cli import options
from graftax.errors import BadInput

CONFIGS = {"garments": "configs/demo_graft.py", "scenes": "configs/scenes_graft.py"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--what", choices=tuple(CONFIGS), help="which of the demos (default: garments)")
    options.add_config(parser, f"another one than {', '.join(CONFIGS.values())}", required=False)


def run(args: argparse.Namespace) -> None:
    """Run the experiment, write the report, say what was found."""
    import time

    from graftax import config
    from graftax.pages import demo_page
    from graftax.study import demo
    from graftax.study.config import experiment_of

    if args.what and args.config:
        raise BadInput(f"--what {args.what}: beside --config {args.config}, expected one of the two")
    start = time.perf_counter()
    settings = experiment_of(options.tree_of(args, config.shipped(CONFIGS[args.what or "garments"])), "demo")
    folder = options.own(settings.workdir, folder=True)
    found = demo.run(settings, folder)
    page = demo_page.write(found, folder)
    print("\n" + "\n".join(demo_page.verdict(found)))
    print(f"Report: {page}  ({time.perf_counter() - start:.0f} s)")
