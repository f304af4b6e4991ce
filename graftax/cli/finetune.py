"""`graftax finetune`: stage 2, train the whole grafted model briefly on the diffusion objective.

Re-running the same command continues from the last checkpoint in WORKDIR/finetune. The result, with averaged weights, is
WORKDIR/finetuned.
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
    parser.add_argument("--student", metavar="FOLDER", help="default: WORKDIR/distilled")
    parser.add_argument("--out", metavar="FOLDER", help="default: WORKDIR/finetuned")
    parser.add_argument("--unaveraged", metavar="FOLDER", help="also write the weights as trained last, not averaged")
    options.add_dry_run(parser)


def run(args: argparse.Namespace) -> None:
    """Load the student, fine-tune, save."""
    import jax

    from graftax import api
    from graftax.data.pixels import images
    from graftax.study import dry_run, stages
    from graftax.study.run_folder import record_settings
    from graftax.study.stages import last_eval
    from graftax.train import latest_weights

    recipe = options.recipe_of(args)
    workdir = Path(recipe.workdir)
    out = Path(args.out or workdir / "finetuned")
    if not args.dry_run:
        options.own(workdir, folder=True)
        options.own(out)
        if args.unaveraged:
            options.own(args.unaveraged)
    recipe.finetune.check_mesh(recipe.mesh, jax.device_count())
    data = options.load_data(recipe.data)

    def vet(spec: ModelSpec) -> None:
        images.check_fit(data, spec)
        recipe.mesh.check_heads(spec.sizes.heads)

    student = stages.read_model(args.student or workdir / "distilled", vet)
    if args.dry_run:
        print(dry_run.dry_finetune(student, recipe.finetune, data, recipe.mesh))
        print(dry_run.saved_steps(workdir / "finetune"))
        return
    student = api.place(student)
    record_settings(workdir, recipe)
    student, history = stages.run_finetune(student, recipe.finetune, data, workdir / "finetune", recipe.mesh)
    api.save(student, out)
    if args.unaveraged:
        api.save(latest_weights(student, recipe.finetune, workdir / "finetune"), args.unaveraged)
    loss = last_eval(history).get("loss")
    print(f"{out}" + (f": loss on held-out data {loss:.4f}" if loss else ""))
