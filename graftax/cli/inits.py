"""`graftax inits`: compare initialisations of scions, by their error before, during and after stage 1 and by samples.

    graftax inits --config configs/demo_inits.py

The folder gets table.md and results.json. Running again continues with the rows that are not finished.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE", help="config file of the comparison")
    parser.add_argument("--workdir", metavar="FOLDER", help="short for --config.workdir=FOLDER")


def run(args: argparse.Namespace) -> None:
    """Measure the rows that are missing, write and print the table."""
    from graftax.cli import config, inits_run
    from graftax.cli.schema import InitsConfig

    extra = [f"workdir={args.workdir}"] if args.workdir else []
    settings = config.build(InitsConfig, config.read(args.config, [*args.overrides, *extra]))
    folder = Path(settings.workdir)
    text = inits_run.table(inits_run.run(settings, folder))
    (folder / "table.md").write_text(text)
    print("\n" + text + f"Written to {folder / 'table.md'}")
