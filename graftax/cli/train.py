"""`graftax train`: train a network from scratch: a DiT, or the demo's autoencoder or classifier.

Re-running the same command continues from the last checkpoint in `workdir`. At the end: workdir/model (averaged
weights), workdir/record.json (config, curve, time, held-out loss), workdir/metrics.jsonl.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE", help="config file; its `task` says what is trained")
    parser.add_argument("--workdir", metavar="FOLDER", help="short for --config.workdir=FOLDER")


def run(args: argparse.Namespace) -> None:
    """Train what the config says, save the model and the training record."""
    from graftax.cli import config, tasks
    from graftax.cli.schema import TRAININGS
    from graftax.errors import BadInput

    tree = config.read(args.config, args.overrides + ([f"workdir={args.workdir}"] if args.workdir else []))
    task = config.convert(str, tree.get("task"), "config.task")
    if task not in TRAININGS:
        raise BadInput(f"config.task: got {task!r}, expected one of {tuple(TRAININGS)}")
    tasks.train(config.build(TRAININGS[task], tree))
