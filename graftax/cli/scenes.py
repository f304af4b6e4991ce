"""`graftax scenes`: pictures of a world whose truth is known, with captions, as files; or a model's pictures of it, judged.

    graftax scenes runs/scenes --count 64
    graftax scenes runs/heldout --count 1000 --split heldout
    graftax scenes runs/judged --model scenes

Without a model: OUT/pictures/000000.png .. with metadata.jsonl, a line for each: file_name, text (the caption) and scene
(kind, colour, place and size of everything in it); and OUT/grid.png, the first of them with their captions. Training needs
no files: `data.source=scenes:100000` draws the same scenes as it goes.

With --model: it draws --count captions of each of GenEval's six categories, held-out ones unless told otherwise, into the
folder layout of `graftax geneval`, what is not there yet. Then every picture is read back into things and judged by
GenEval's rules. Scores with their protocol go to OUT/scores, which `graftax compare` reads, every picture's verdict to
OUT/verdicts.json, a page with examples to OUT/geneval.html, and the first pictures to OUT/judged.png.
"""

from __future__ import annotations

import argparse

from graftax.cli import options
from graftax.errors import BadInput

SHOWN, COLUMNS = 64, 8
JUDGED, EACH = 50, 4  # captions of a category, and how many of them the grid shows
PICTURES, GRID, VERDICTS = "pictures", "grid.png", "judged.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--count", type=int, metavar="N", help=f"scenes (default: {SHOWN}), or captions of a category (default: {JUDGED})"
    )
    parser.add_argument("--split", help="train, or heldout: combinations that training never sees (default: train; of a "
                        "model's captions heldout)")  # fmt: skip
    parser.add_argument("--model", metavar="MODEL", help='judge its pictures: a model of texts, as "scenes"')
    options.add_overwrite(parser, "the pictures in OUT, or the scores")
    options.add_json(parser)
    options.add_drawing(parser, batch_size=60)


def run(args: argparse.Namespace) -> None:
    """Draw and write, or draw and judge."""
    _scenes(args) if args.model is None else _model(args)


def _scenes(args: argparse.Namespace) -> None:
    from graftax.checkpoint.files import filling
    from graftax.data.scenes import Scenes, render
    from graftax.data.scenes.folder import remove_beyond, write_folder
    from graftax.evaluate.labels import captioned
    from graftax.evaluate.pictures import save_png

    options.refuse_drawing(args, "scenes")
    scenes = Scenes(SHOWN if args.count is None else args.count, args.split or "train", args.seed)
    out = options.own_output(args.out, args.overwrite, GRID)
    shown = [scenes[i] for i in range(min(SHOWN, len(scenes)))]
    grid = captioned([render(each) for each in shown], [str(each.caption) for each in shown], COLUMNS)
    with filling(out) as temporary:
        write_folder(scenes, temporary / PICTURES)
        save_png(temporary / GRID, grid)
    remove_beyond(out / PICTURES, len(scenes))
    options.answer(args, {"folder": str(out), "scenes": len(scenes)}, f"{out}: {len(scenes):,} {scenes.name}")


def _model(args: argparse.Namespace) -> None:
    from graftax.cli.geneval import tell
    from graftax.evaluate.scenes import as_prompt, prompt_set, score_folder
    from graftax.pages import geneval_page

    count, split = JUDGED if args.count is None else args.count, args.split or "heldout"
    if count < 1:
        raise BadInput(f"--count: got {count}, expected 1 or more")
    prompts = [as_prompt(caption) for caption in prompt_set(count, split)]
    # Pictures that are there of the same are continued; `draw_folder` refuses another's.
    folder = options.own_output(args.out, args.overwrite, geneval_page.PAGE)
    drawn = options.draw_prompts(args, prompts, f"scenes, {split}", 1, folder)
    found = score_folder(folder)
    grid = geneval_page.save_grid(found, folder, folder / VERDICTS, EACH)
    tell(args, found, found.result(drawn), folder, grid=str(grid))
