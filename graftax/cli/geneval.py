"""`graftax geneval`: draw GenEval's prompts, and judge their pictures by what a detector saw in them.

    graftax geneval runs/geneval --model PixArt-Sigma-XL-2-1024-MS --prompts evaluation_metadata.jsonl
    graftax geneval runs/geneval --detections detections.json

The first draws, as `graftax sample` would, what is not in FOLDER yet: the same command continues. FOLDER is what GenEval's
official evaluator reads: 00000/metadata.jsonl, a line of its evaluation_metadata.jsonl, and 00000/samples/0000.png and more,
for every prompt. The rules are the official ones: thresholds, counting, colours, places. The detector is yours, and its file
says which one it was:

    {"detector": NAME AND VERSION, "colors": WHAT NAMED THE COLOURS, "classes": [ALL THAT IT KNOWS],
     "images": {"00000/samples/0000.png": [{"class": "bench", "box": [x0, y0, x1, y1], "score": 0.97, "color": "red"}]}}

with all objects of a score above 0.3 (see graftax/evaluate/geneval/detections.py). Scores with the protocol that drew the
pictures go to FOLDER/scores, which `graftax compare` reads, every picture's verdict to FOLDER/verdicts.json, and a page with
examples to FOLDER/geneval.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from graftax.cli import options
from graftax.errors import BadInput

if TYPE_CHECKING:
    from graftax.evaluate.geneval import Scores
    from graftax.evaluate.result import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="pictures of GenEval's prompts")
    parser.add_argument("--detections", metavar="FILE", help="JSON of the objects in every picture")
    parser.add_argument("--model", metavar="MODEL", help="what draws them: a model of texts, as in `graftax sample`")
    parser.add_argument("--prompts", metavar="FILE", help="GenEval's evaluation_metadata.jsonl, to draw from")
    parser.add_argument("--per-prompt", type=int, metavar="N", help="pictures of each (default: 4, as published scores)")
    options.add_overwrite(parser, "the scores in FOLDER")
    options.add_json(parser)
    options.add_drawing(parser, batch_size=16)


def run(args: argparse.Namespace) -> None:
    """Draw, or judge."""
    if (args.model is None) == (args.detections is None):
        raise BadInput("geneval: expected --model, to draw the pictures, or --detections, to judge them")
    if args.model is None:
        options.refuse_drawing(args, "geneval", "prompts", "per_prompt")
    if args.model is not None and args.prompts is None:
        raise BadInput("geneval --model: --prompts is missing, GenEval's evaluation_metadata.jsonl")
    if args.model is not None and args.overwrite:
        raise BadInput("geneval --overwrite: belongs to scores, expected --detections; drawing goes on where it was")
    _judge(args) if args.model is None else _draw(args)


def _draw(args: argparse.Namespace) -> None:
    """Draw what is not there yet."""
    from graftax.evaluate.geneval import read_prompts
    from graftax.evaluate.geneval.folder import EACH, INDEX

    each = EACH if args.per_prompt is None else args.per_prompt
    if each < 1:
        raise BadInput(f"per_prompt: got {each}, expected 1 or more")
    prompts = read_prompts(args.prompts)
    # What is there of the same pictures is continued, so it may be there; `draw_folder` refuses another's.
    folder = options.own_output(args.folder, True, INDEX)
    drawn = options.draw_prompts(args, prompts, Path(args.prompts).name, each, folder)
    options.answer(args, {"folder": str(folder), **drawn.record()}, f"{folder}: {drawn.protocol}")


def _judge(args: argparse.Namespace) -> None:
    """Read, judge, write, print."""
    from graftax.errors import naming
    from graftax.evaluate.geneval import read_detections, read_folder, score
    from graftax.evaluate.geneval.folder import INDEX, read_drawn
    from graftax.pages import geneval_page

    images = read_folder(args.folder)
    folder = options.own_output(args.folder, args.overwrite, geneval_page.PAGE)
    with naming(args.detections):
        found = score(images, read_detections(args.detections))
    result = found.result(read_drawn(folder)) if (folder / INDEX).exists() else None
    tell(args, found, result, folder)


def tell(args: argparse.Namespace, found: Scores, result: Result | None, folder: Path, **places: str) -> None:
    """Write verdicts, scores and page, print all; `places`: what else was written."""
    from graftax.pages import geneval_page

    if result is not None:
        result.save(folder)
    places = {
        "verdicts": str(found.save(folder)), "page": str(geneval_page.write(found, result, folder, folder)), **places
    }  # fmt: skip
    record = {"judge": found.judge, "scores": found.scores, "tasks": found.tasks, **(result.record() if result else {})}
    options.answer(args, {**record, **places}, "\n".join([geneval_page.text(found, result), *places.values()]))
