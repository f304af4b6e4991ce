"""`graftax report`: everything a run folder knows, as one page that can be mailed.

    graftax report runs/demo_graft

Reads what `graft`, `distill`, `finetune`, `train` and `evaluate --out RUN/evaluation/NAME` have left in the folder, and
computes nothing: curves of both stages, errors by layer, samples of the evaluated models, scores, cost, what was edited,
protocols, settings, environment. Writes RUN/report.html; parts that are not there yet are named with the command that
makes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graftax.cli import options
from graftax.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="RUN", help="work folder of a grafting experiment or a training")
    parser.add_argument(
        "--shown", type=int, default=40, metavar="N", help="samples per evaluated model (default: %(default)s)"
    )
    options.add_overwrite(parser, "the report in RUN")


def run(args: argparse.Namespace) -> None:
    """Read the folder, write the page."""
    from graftax.pages import report_page
    from graftax.study.run_folder import read_run

    if args.shown < 1:
        raise BadInput(f"shown: got {args.shown}, expected 1 or more")
    found = read_run(Path(args.folder))
    print(report_page.write(found, options.output(args.folder, args.overwrite, "report.html"), args.shown))
