"""`graftax search`: find the sites where grafting does least harm, from a student distilled at every candidate site.

    graftax graft   --config configs/demo_search.py
    graftax distill --config configs/demo_search.py
    graftax search  --config configs/demo_search.py

Prints the error of the whole model's output when one site alone is grafted, and the FLOPs that this saves; then sets of
sites that save as much as interleaving, with their joint error: chosen by single errors, by greedy search, interleaved,
deep. The last lines are the edits of the best set, for `replace` in a config. WORKDIR/search gets search.json, harm.png,
and the model grafted at the best set, for `graftax finetune --student WORKDIR/search/best`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.analyze.search import Choice, SiteHarm
    from graftax.spec import ModelSpec
    from graftax.surgery import Site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_config(parser)
    parser.add_argument("--teacher", metavar="PATH", help="default: the config's teacher")
    parser.add_argument("--student", metavar="FOLDER", help="default: WORKDIR/distilled")
    parser.add_argument("--share", type=int, default=50, metavar="PERCENT", help="of the blocks (default: %(default)s)")
    parser.add_argument("--budget", type=int, metavar="FLOPS", help="per image and pass; default: as interleaving the share")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="held-out images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws their times and noise")
    parser.add_argument("--out", metavar="FOLDER", help="default: WORKDIR/search")


def run(args: argparse.Namespace) -> None:
    """Measure all sites, choose, compare, print and write."""
    import jax

    from graftax import api
    from graftax.analyze.harm import Harm, flops_saved
    from graftax.analyze.search import choose_sites, evaluate_sites, greedy_search, measure_sites
    from graftax.cli.experiments import stages
    from graftax.cli.pixels import images
    from graftax.distill.sites import scion_sites
    from graftax.errors import BadInput
    from graftax.models.cost import flops
    from graftax.surgery import inverse

    recipe = options.recipe_of(args)
    data = images.load(recipe.data)
    if not data.held_out or args.images < 1:
        raise BadInput(f"search: {len(data.raw_test)} held-out images, {args.images} asked for, expected 1 or more")
    teacher = stages.open_model(args.teacher or recipe.teacher, lambda spec: images.check_fit(data, spec))
    student = stages.open_model(args.student or Path(recipe.workdir) / "distilled")
    candidates = scion_sites(student, None)
    presets = _presets(student.spec, candidates, args.share)
    saved = flops_saved(teacher.spec, student.spec, candidates)
    cheaper = sum(saved[site] for site in presets["interleaved"])
    saving = cheaper if args.budget is None else flops(teacher.spec) - args.budget
    heldout = {"image": data.test[: args.images], "label": data.test_labels[: args.images]}
    harm = Harm(teacher, student, heldout, seed=args.seed)
    found = measure_sites(harm, saved)
    choices = {
        "least harm": evaluate_sites(harm, saved, choose_sites(found, saving)),
        "greedy search": greedy_search(harm, saved, saving),
        **{f"{name} {args.share}%": evaluate_sites(harm, saved, sites) for name, sites in presets.items()},
    }
    best = min((choices["least harm"], choices["greedy search"]), key=lambda choice: choice.harm)
    folder = Path(args.out or Path(recipe.workdir) / "search")
    _report(folder, found, choices, edits_of(student.spec, best.sites))
    others = sorted(set(candidates) - set(best.sites))
    api.save(api.graft(student, inverse(teacher, others), jax.random.key(0)) if others else student, folder / "best")


def edits_of(student: ModelSpec, sites: Sequence[Site]) -> list[str]:
    """The student's scions at some sites as texts for `replace`: "blocks[0,3].mixer=hyena_x(kernel=4)"."""
    from graftax.analyze.search import selectors
    from graftax.distill.groups import group_sites

    return [f"{selectors(group.sites)[0]}={group.op}" for group in group_sites(student, sites).values()]


def _presets(student: ModelSpec, candidates: Sequence[Site], share: int) -> dict[str, tuple[Site, ...]]:
    """The paper's choices by position, in every slot that has candidates."""
    from graftax.errors import BadInput
    from graftax.surgery import select

    slots = sorted({site.slot for site in candidates})
    items = {"interleaved": f"{share}%", "deep": f"deep:{share}%"}
    presets = {name: select([f"blocks[{item}].{slot}" for slot in slots], student) for name, item in items.items()}
    missing = sorted({site for sites in presets.values() for site in sites} - set(candidates))
    if missing:
        raise BadInput(f"student: no scion at {missing[0]}, expected them at every block, as blocks[*] gives them")
    return presets


def _report(folder: Path, found: Sequence[SiteHarm], choices: dict[str, Choice], edits: list[str]) -> None:
    from graftax.checkpoint.files import replacing
    from graftax.evaluate import pictures
    from graftax.evaluate.bench.rows import format_table

    sites = [{"site": str(one.site), "harm": one.harm, "FLOPs saved": one.saved} for one in found]
    sets = [
        {"set": name, "sites": len(choice.sites), "FLOPs saved": choice.saved, "joint harm": choice.harm,
         "selector": " ".join(choice.selectors)}
        for name, choice in choices.items()
    ]  # fmt: skip
    print("\n\n".join([format_table(sites), format_table(sets), "\n".join(["best set, as edits:", *edits])]))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "search.json") as temporary:
        temporary.write_text(json.dumps({"sites": sites, "sets": sets, "edits": edits}, indent=1) + "\n")
    slots = sorted({one.site.slot for one in found})
    series = {slot: [(one.site.block, one.harm) for one in found if one.site.slot == slot] for slot in slots}
    with replacing(folder / "harm.png") as temporary:
        pictures.bars(temporary, series, x="block", y="relative error of the output")
    print(f"{folder}: search.json, harm.png, best")
