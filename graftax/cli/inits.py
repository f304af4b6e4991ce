"""`graftax inits`: compare initialisations of scions, by their error before, during and after stage 1 and by samples.

    graftax inits --config configs/demo_inits.py

The folder gets table.md and results.json. Running again continues with the rows that are not finished.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser, "config file of the comparison")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measure the rows that are missing, write and print the table."""
    from graftax.checkpoint.paths import work_path, write_text
    from graftax.study import inits
    from graftax.study.config import experiment_of
    from graftax.study.examiners import kind_of

    settings = experiment_of(options.tree_of(args), "inits")
    folder = options.own(settings.workdir, folder=True)
    rows = inits.run(settings, folder)
    text = inits.table(rows, kind_of(settings.data).measures)
    write_text(work_path(folder / "table.md"), text)
    options.answer(args, rows, f"{text}Written to {folder / 'table.md'}")
