"""`graftax scenes`: pictures of a world whose truth is known, with captions, as files.

    graftax scenes runs/scenes --count 64
    graftax scenes runs/heldout --count 1000 --split heldout

Writes OUT/pictures/000000.png .. with metadata.jsonl, a line for each: file_name, text (the caption) and scene (kind,
colour, place and size of everything in it); and OUT/grid.png, the first of them with their captions. Training needs no
files: `data.source=scenes:100000` draws the same scenes as it goes.
"""

from __future__ import annotations

import argparse

from graftax.cli import options

SHOWN, COLUMNS = 64, 8
PICTURES, GRID = "pictures", "grid.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--count", type=int, default=SHOWN, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--split", default="train", help="train, or heldout: combinations that training never sees")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the stream of scenes (default: %(default)s)")
    options.add_overwrite(parser, "the pictures in OUT")


def run(args: argparse.Namespace) -> None:
    """Draw and write."""
    from graftax.checkpoint.files import filling
    from graftax.data.scenes import Scenes, render
    from graftax.data.scenes.folder import remove_beyond, write_folder
    from graftax.evaluate.labels import captioned
    from graftax.evaluate.pictures import save_png

    scenes = Scenes(args.count, args.split, args.seed)
    out = options.own_output(args.out, args.overwrite, GRID)
    shown = [scenes[i] for i in range(min(SHOWN, len(scenes)))]
    grid = captioned([render(each) for each in shown], [str(each.caption) for each in shown], COLUMNS)
    with filling(out) as temporary:
        write_folder(scenes, temporary / PICTURES)
        save_png(temporary / GRID, grid)
    remove_beyond(out / PICTURES, len(scenes))
    print(f"{out}: {len(scenes):,} {scenes.name}")
