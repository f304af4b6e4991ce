"""`graftax graft`: edit a model: exchange operators, change its depth or program, add adapters.

    graftax graft demo --edit 'replace(blocks[1::2].mixer, hyena_x(kernel=4))' --out student
    graftax graft demo --edit 'blocks[50%].mixer=hyena_x(kernel=4)' --edit 'blocks[*].mlp=3' --out student
    graftax graft demo --edit 'replace(blocks[*].adaln, adaln_shared)' --edit 'rotary(blocks[*].mixer)' --out modern
    graftax graft demo --edit 'drop(3, 5)' --edit 'lora(blocks[*].mixer, rank=8)' --out short
    graftax graft --config configs/demo_graft.py

Edits are done in the order in which they are given, each on the model as those before have left it; the names are those of
the Python functions (`graftax.surgery`). New operators start at random, or from those that they replace with
init=transplant. `graftax distill` teaches them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.data.config import DataConfig
    from graftax.models import Model
    from graftax.surgery import Report
    from graftax.surgery.config import GraftConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", nargs="?", help='a file, folder, or "demo"; default: the config\'s teacher')
    parser.add_argument("--edit", action="append", default=[], metavar="EDIT", help="what to do; may be given again")
    parser.add_argument("--seed", type=int, default=0, help="draws the new weights (default: %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="where the student goes; default: WORKDIR/grafted of the config")
    options.add_overwrite(parser)
    options.add_config(parser, required=False)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Check the edit against the spec, then load, edit, save and report."""
    from graftax import api
    from graftax.study import stages

    name, config, out, source = _plan(args)
    data = (lambda: options.load_data(source)) if source else None
    teacher = stages.open_model(name, lambda spec: stages.check_edit(config.edit, spec, data), **options.overrides_of(args))
    student, report = stages.run_graft(teacher, config, data)
    api.save(student, out)
    print(f"{out}\n{report}")
    _print_modulation(teacher, student, report)


def _print_modulation(teacher: Model, student: Model, report: Report) -> None:
    """How well modulations were fitted, where any were exchanged and all blocks are still there to be compared."""
    from graftax.analyze import modulation_error
    from graftax.blocks import slot_of

    spec = student.spec
    roles = {slot_of(spec.blocks[site.block].kind, site.slot).role for site in report.sites}
    if "modulation" in roles and spec.depth == teacher.spec.depth:
        error = modulation_error(teacher, student)["mean"]
        print(f"{'modulation':<20}relative error {error:.3f} over times and classes")


def _plan(args: argparse.Namespace) -> tuple[str, GraftConfig, Path, DataConfig | None]:
    """The model, what is done to it, where it goes, and the data that may be needed."""
    from graftax.errors import BadInput
    from graftax.surgery.config import GraftConfig

    if args.config is None:
        if not args.model or not args.edit or not args.out or args.workdir or args.overrides:
            raise BadInput("graft: expected MODEL with --edit and --out, or --config")
        config = GraftConfig(edits=tuple(args.edit), seed=args.seed)
        return args.model, config, options.own_model_output(args.out, args.overwrite), None
    if args.edit:
        raise BadInput("graft: got --config and --edit, expected edits in one place")
    recipe = options.recipe_of(args)
    if args.out is None:
        options.own(recipe.workdir, folder=True)
    out = options.own_model_output(args.out or Path(recipe.workdir) / "grafted", args.overwrite)
    return args.model or recipe.teacher, recipe.graft, out, recipe.data
