"""`graftax distill`: stage 1, teach all new operators at once what the old ones did.

Re-running the same command continues from the last checkpoint in WORKDIR/distill. The result is WORKDIR/distilled.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser)
    parser.add_argument("--teacher", metavar="PATH", help="default: the config's teacher")
    parser.add_argument("--student", metavar="FOLDER", help="default: WORKDIR/grafted")
    parser.add_argument("--out", metavar="FOLDER", help="default: WORKDIR/distilled")
    options.add_dry_run(parser)


def run(args: argparse.Namespace) -> None:
    """Load teacher and student, distil, save the student."""
    import jax

    from graftax import api
    from graftax.data.pixels import images
    from graftax.study import dry_run, stages
    from graftax.study.run_folder import record_settings
    from graftax.study.stages import last_eval

    recipe = options.recipe_of(args)
    workdir = Path(recipe.workdir)
    out = Path(args.out or workdir / "distilled")
    if not args.dry_run:
        options.own(workdir, folder=True)
        options.own(out)
    recipe.mesh.check(jax.device_count(), recipe.distill.batch_size)
    data = options.load_data(recipe.distill_data)

    def vet(spec: ModelSpec) -> None:
        images.check_fit(data, spec)
        recipe.mesh.check_heads(spec.sizes.heads)

    teacher = stages.read_model(args.teacher or recipe.teacher, vet)
    student = stages.read_model(args.student or workdir / "grafted", vet)
    if args.dry_run:
        print(dry_run.dry_distill(teacher, student, recipe.distill, data, recipe.mesh))
        print(dry_run.saved_steps(workdir / "distill"))
        return
    teacher, student = api.place(teacher), api.place(student)
    record_settings(workdir, recipe)
    student, history = stages.run_distill(teacher, student, recipe.distill, data, workdir / "distill", recipe.mesh)
    api.save(student, out)
    error = last_eval(history).get("error")
    print(f"{out}" + (f": mean relative error of the new operators on held-out data {error:.3f}" if error else ""))
