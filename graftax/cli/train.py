"""`graftax train`: train a network from scratch: a DiT, or the demo's autoencoder or classifier.

Re-running the same command continues from the last checkpoint in `workdir`. At the end: workdir/model (averaged
weights), workdir/record.json (config, curve, time, held-out loss), workdir/metrics.jsonl.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser, "config file; its `task` says what is trained")


def run(args: argparse.Namespace) -> None:
    """Train what the config says, save the model and the training record."""
    from graftax.cli import config
    from graftax.cli.experiments import tasks
    from graftax.cli.schema import TRAININGS
    from graftax.errors import BadInput

    tree = options.tree_of(args)
    task = config.convert(str, tree.get("task"), "config.task")
    if task not in TRAININGS:
        raise BadInput(f"config.task: got {task!r}, expected one of {tuple(TRAININGS)}")
    tasks.train(config.build(TRAININGS[task], tree))
