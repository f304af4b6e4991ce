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
    options.add_dry_run(parser)


def run(args: argparse.Namespace) -> None:
    """Train what the config says, save the model and the training record."""
    from graftax.study import pretrain

    config = pretrain.pretraining_of(options.tree_of(args))
    if args.dry_run:
        print("\n\n".join(map(str, pretrain.dry_run(config))))
    else:
        workdir = options.own(config.workdir, folder=True)
        held_out = pretrain.run(config)["held_out"]
        print(f"{config.task}: {workdir / 'model'}; held out: {held_out}")
