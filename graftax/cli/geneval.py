"""`graftax geneval`: judge pictures of GenEval's prompts by what a detector saw in them.

    graftax geneval runs/geneval --detections detections.json

FOLDER is what GenEval's official evaluator reads: 00000/metadata.jsonl, a line of its evaluation_metadata.jsonl, and
00000/samples/0000.png and more, for every prompt. The rules are the official ones: thresholds, counting, colours, places.
The detector is yours, and its file says which one it was:

    {"detector": NAME AND VERSION, "colors": WHAT NAMED THE COLOURS, "classes": [ALL THAT IT KNOWS],
     "images": {"00000/samples/0000.png": [{"class": "bench", "box": [x0, y0, x1, y1], "score": 0.97, "color": "red"}]}}

with all objects of a score above 0.3 (see graftax/evaluate/geneval/detections.py). Scores with the protocol that drew the
pictures go to FOLDER/scores, which `graftax compare` reads, every picture's verdict to FOLDER/verdicts.json, and a page with
examples to FOLDER/geneval.html.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="pictures of GenEval's prompts")
    parser.add_argument("--detections", required=True, metavar="FILE", help="JSON of the objects in every picture")
    options.add_overwrite(parser, "the scores in FOLDER")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
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
    verdicts = found.save(folder)
    if result is not None:
        result.save(folder)
    page = geneval_page.write(found, result, folder, folder)
    record = {"judge": found.judge, "scores": found.scores, "tasks": found.tasks, **(result.record() if result else {})}
    places = {"verdicts": str(verdicts), "page": str(page)}
    options.answer(args, {**record, **places}, f"{geneval_page.text(found, result)}\n{verdicts}\n{page}")
