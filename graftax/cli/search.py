"""`graftax search`: find the sites where grafting does least harm, from a student distilled at every candidate site.

    graftax graft   --config configs/demo_search.py
    graftax distill --config configs/demo_search.py
    graftax search  --config configs/demo_search.py

Prints the error of the whole model's output when one site alone is grafted, and the FLOPs that this saves; then sets of
sites that save as much as interleaving, with their joint error: chosen by single errors, by greedy search, interleaved,
deep. The last lines are the edits of the best set, for `graft.edits` in a config. WORKDIR/search gets search.json, harm.png,
and the model grafted at the best set, for `graftax finetune --student WORKDIR/search/best`.

--spans N needs the teacher alone: which N blocks of a kind in a row it misses least, as edits that drop and heal them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graftax.cli import options
from graftax.errors import BadInput

FILE = "search.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser)
    parser.add_argument("--teacher", metavar="PATH", help="default: the config's teacher")
    parser.add_argument("--student", metavar="FOLDER", help="default: WORKDIR/distilled")
    parser.add_argument("--spans", type=int, metavar="N", help="blocks in a row to drop, in place of sites to graft")
    parser.add_argument("--share", type=int, default=50, metavar="PERCENT", help="of the blocks (default: %(default)s)")
    parser.add_argument("--budget", type=int, metavar="FLOPS", help="per image and pass; default: as interleaving the share")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="held-out images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws their times and noise")
    parser.add_argument("--out", metavar="FOLDER", help="default: WORKDIR/search")
    options.add_overwrite(parser, "the search in --out")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measure all sites, or spans, choose, compare, print and write."""
    from graftax import api
    from graftax.analyze.search import search
    from graftax.analyze.spans import measure_spans
    from graftax.data.pixels import images
    from graftax.pages.search_record import sites_record, spans_record
    from graftax.study import stages

    recipe = options.recipe_of(args)
    folder = options.own_output(args.out or Path(recipe.workdir) / "search", args.overwrite, FILE)
    data = images.load(recipe.data)
    if not data.held_out or args.images < 1:
        raise BadInput(f"search: {len(data.raw_test)} held-out images, {args.images} asked for, expected 1 or more")
    teacher = stages.open_model(args.teacher or recipe.teacher, lambda spec: images.check_fit(data, spec))
    heldout = {name: array[: args.images] for name, array in (data.heldout or {}).items()}
    if args.spans is not None:
        return _report(args, folder, *spans_record(measure_spans(teacher, heldout, args.spans, seed=args.seed)))
    student = stages.open_model(args.student or Path(recipe.workdir) / "distilled")
    found = search(teacher, student, heldout, share=args.share, budget=args.budget, seed=args.seed)
    _report(args, folder, *sites_record(found))
    api.save(found.model, folder / "best")


def _report(args: argparse.Namespace, folder: Path, record: dict[str, Any], series: Any) -> None:
    from graftax.checkpoint.files import filling
    from graftax.evaluate import pictures
    from graftax.pages.search_record import search_text

    with filling(folder) as fresh:
        (fresh / FILE).write_text(json.dumps(record, indent=1) + "\n")
        pictures.bars(fresh / "harm.png", series, x="block", y="relative error of the output")
    options.answer(args, record, search_text(record, f"{folder}: {FILE}, harm.png"))
