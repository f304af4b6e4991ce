"""`graftax graft`: put new operators into a trained model.

    graftax graft demo --replace 'blocks[1::2].mixer=hyena_x(kernel=4)' --out runs/grafted
    graftax graft demo --restructure 'parallel_pairs()' --out runs/pairs
    graftax graft --config configs/demo_graft.py

Selectors: blocks[ITEMS].mixer or .mlp with ITEMS like 3, 1::2, 4:8, *, 50%, 75%, deep:50%, or an operator's name, or
several with commas. The new operators are untrained: `graftax distill` teaches them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", nargs="?", help='a file, folder, or "demo"; default: the config\'s teacher')
    parser.add_argument("--replace", action="append", default=[], metavar="SELECTOR=OPERATOR", help="may be given again")
    parser.add_argument("--resize", action="append", default=[], metavar="SELECTOR=RATIO", help="new MLP expansion ratio")
    parser.add_argument("--lora", action="append", default=[], metavar="TARGET=RANK", help="adapters; or =RANK,ALPHA")
    parser.add_argument("--restructure", action="append", default=[], metavar="EDIT", help="parallel_pairs(), drop(3, 5)")
    parser.add_argument("--init", choices=("random", "transplant"), default="random", help="where new weights come from")
    parser.add_argument("--seed", type=int, default=0, help="draws the new weights")
    parser.add_argument("--out", metavar="FOLDER", help="where the student goes; default: WORKDIR/grafted of the config")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    options.add_config(parser, required=False)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Check the edit against the spec, then load, edit, save and report."""
    from graftax import api
    from graftax.cli.experiments import stages
    from graftax.cli.pixels import images

    name, config, out, source = _plan(args)
    data = (lambda: images.load(source)) if source else None
    teacher = stages.open_model(name, lambda spec: stages.check_edit(config, spec, data), **options.overrides_of(args))
    student, report = stages.run_graft(teacher, config, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    api.save(student, out)
    print(f"{out}\n{report}")


def _plan(args: argparse.Namespace):
    from graftax.cli.schema import GraftConfig
    from graftax.errors import BadInput

    edits: dict[str, Any] = {name: tuple(getattr(args, name)) for name in ("replace", "resize", "restructure", "lora")}
    if args.config is None:
        if not args.model or not args.out or args.workdir or args.overrides:
            raise BadInput("graft: expected MODEL with --replace, --resize, --restructure or --lora and --out, or --config")
        config = GraftConfig(**edits, init=args.init, seed=args.seed)
        return args.model, config, options.refuse_existing(args.out, args.overwrite), None
    if any(edits.values()):
        raise BadInput("graft: got --config and --replace, --resize, --restructure or --lora, expected edits in one place")
    recipe = options.recipe_of(args)
    out = options.refuse_existing(args.out, args.overwrite) if args.out else Path(recipe.workdir) / "grafted"
    return args.model or recipe.teacher, recipe.graft, out, recipe.data
