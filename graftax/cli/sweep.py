"""`graftax sweep`: many grafts of one model under the same small budget, in one table.

    graftax sweep --config configs/demo_sweep.py

Every variant of the config is grafted, distilled and fine-tuned, and scored before, between and after. The folder gets
report.html, table.md, results.json and pictures. Running again continues with what is not done yet; a variant whose
settings have changed is done again. A variant that becomes non-finite is noted as failed, the others go on, and the exit
code is 3.
"""

from __future__ import annotations

import argparse
import json

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser, "config file of the sweep")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Do the runs that are left, write the report, print the table."""
    from graftax.errors import NonFinite
    from graftax.pages import sweep_page
    from graftax.study import sweep
    from graftax.study.config import experiment_of

    settings = experiment_of(options.tree_of(args), "sweep")
    folder = options.own(settings.workdir, folder=True)
    found = sweep.run(settings, folder)
    page = sweep_page.write(found, folder)
    verdict = "\n".join(sweep_page.verdict(found))
    tables = "\n\n".join(sweep_page.text(*each) for each in sweep_page.tables(found))
    text = f"{tables}\n\n{verdict}\nReport: {page}"
    options.answer(args, {**json.loads((folder / sweep.RESULTS).read_text()), "report": str(page)}, text)
    if found.failed:
        names = ", ".join(run.variant for run in found.failed)
        raise NonFinite(f"sweep: {len(found.failed)} of {len(found.runs)} runs became non-finite: {names}")
