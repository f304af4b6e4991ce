"""`graftax compare`: several evaluated models in one table and one picture, quality against cost.

    graftax evaluate demo --out runs/eval/teacher
    graftax evaluate runs/demo/hyena_x-5-of-10 --out runs/eval/half
    graftax compare runs/eval --out runs/compare

Takes folders that `graftax evaluate --out` has written to, or folders with such folders in them. Results of different
protocols do not compare: they are refused, unless --any-protocol is given; then every difference is shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with results in it or below it")
    parser.add_argument("--any-protocol", action="store_true", help="compare although protocols differ, and say in what")
    parser.add_argument("--out", metavar="FOLDER", default="runs/compare", help="for the page (default: %(default)s)")
    options.add_overwrite(parser, "the page in --out")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Read, check, print the table, write the page."""
    from graftax.evaluate.result import check_comparable, find_results
    from graftax.pages import compare_page

    out = options.output(args.out, args.overwrite, "compare.html")
    found = {run: find_results(Path(run)) for run in args.runs}
    named = [(_name(run, path, len(found)), result) for run in found for path, result in found[run].items()]
    if not args.any_protocol:
        check_comparable(named)
    page = compare_page.write(named, out)
    record = {"results": [{"run": name, **result.record()} for name, result in named], "page": str(page)}
    options.answer(args, record, f"{compare_page.text(named)}\n{page}")


def _name(run: str, path: str, runs: int) -> str:
    """Short and unique: the evaluation's folder, and the run's where there are several; "evaluation" says nothing."""
    from graftax.study.run_folder import EVALUATION

    inner = [part for part in Path(path).parent.parent.parts if part != EVALUATION]
    return "/".join([*([run.rstrip("/")] if runs > 1 or not inner else []), *inner])
