"""`graftax sweep`: many grafts of one model, or many models from scratch, under the same small budget, in one table.

    graftax sweep --config configs/demo_sweep.py
    graftax sweep --config configs/debate.py

Every variant of the config is grafted, distilled and fine-tuned, and scored before, between and after; every entrant of a
debate is trained from scratch at equal FLOPs, and what is claimed of them gets a verdict. The folder gets
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
    from graftax.config import build
    from graftax.errors import NonFinite
    from graftax.pages import debate_page, sweep_page
    from graftax.study import debate, sweep
    from graftax.study.config import experiment_of
    from graftax.study.debate_config import DebateConfig

    tree = options.tree_of(args)
    settings = build(DebateConfig, tree) if tree.get("kind") == "debate" else experiment_of(tree, "sweep")
    folder = options.own(settings.workdir, folder=True)
    if isinstance(settings, DebateConfig):
        found = debate.run(settings, folder)
        page, verdict, tables = debate_page.write(found, folder), debate_page.verdict(found), [debate_page.table(found)]
        names = ", ".join(run.entrant for run in found.failed)
    else:
        found = sweep.run(settings, folder)
        page, verdict, tables = sweep_page.write(found, folder), sweep_page.verdict(found), sweep_page.tables(found)
        names = ", ".join(run.variant for run in found.failed)
    text = "\n\n".join([*(sweep_page.text(*each) for each in tables), "\n".join([*verdict, f"Report: {page}"])])
    options.answer(args, {**json.loads((folder / sweep.RESULTS).read_text()), "report": str(page)}, text)
    if found.failed:
        raise NonFinite(f"sweep: {len(found.failed)} of {len(found.runs)} runs became non-finite: {names}")
