"""`graftax replay`: do to one model what was done to another: the edits that its provenance records.

    graftax replay student/ DiT-XL-2-512x512.pt --out student-512
    graftax inspect student/                                        shows what would be done

Trainings are part of the provenance, but not of what is done: distil and fine-tune the result as usual.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="the model whose recipe it is")
    parser.add_argument("other", help="the model that is edited")
    parser.add_argument("--seed", type=int, default=0, help="draws the new weights (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the result goes")
    options.add_overwrite(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Read the recipe, edit, save and report."""
    import jax

    from graftax import api
    from graftax.study.missing import require_model
    from graftax.surgery import replay

    out = options.own_model_output(args.out, args.overwrite)
    require_model(args.model)
    require_model(args.other)
    recipe = api.read(args.model).meta
    model, report, left_out = replay(recipe, api.load(args.other, **options.overrides_of(args)), jax.random.key(args.seed))
    api.save(model, out)
    print(f"{out}\n{report}")
    if left_out:
        print(f"{'not replayed':<20}{', '.join(left_out)}")
