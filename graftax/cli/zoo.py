"""`graftax zoo`: the published checkpoints: what they are, what was published of them, where they are.

    graftax zoo
    graftax zoo dit-xl2-mha-swa-50p-fid2.67

Weights are not shipped and nothing is downloaded. A name from here also serves `graftax inspect`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftax.checkpoint.zoo import Published, Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="a model of the list; default: print the list")


def run(args: argparse.Namespace) -> None:
    """Print the list, or one model."""
    from graftax.checkpoint import zoo

    print(describe(zoo.find(args.name)) if args.name else listing(list(zoo.ZOO.values())))


def listing(models: list[Published]) -> str:
    """One line per model, without a line end."""
    width = max(len(model.name) for model in models)
    lines = [f"{'name':<{width}}   FID   parameters   GFLOPs  edit"]
    for model in models:
        numbers = f"{model.scores.fid:5.2f}  {model.params:11,}  {model.flops / 1e9:7.2f}"
        lines.append(f"{model.name:<{width}} {numbers}  {model.edit}".rstrip())
    return "\n".join(lines)


def describe(model: Published) -> str:
    """One model in a few lines, without a line end."""
    from graftax.surgery.select import compact

    file = model.url.rsplit("/", 1)[1]
    fields = {
        "name": model.name,
        "edit": f"{model.edit} on DiT-XL-2-256x256" if model.edit else "none",
        "blocks": f"{compact(model.blocks)} ({len(model.blocks)})" if model.blocks else "none",
        "parameters": f"{model.params:,}",
        "FLOPs": f"{model.flops:,} per image and forward pass",
        "published": _scores(model.scores),
        "note": model.note,
        "page": model.page,
        "weights": model.url,
        "licence": model.licence,
        "load": f'graftax.load("{file}"), graftax inspect {file}, graftax convert {file} FOLDER',
    }
    return "\n".join(f"{name:<12}{value}" for name, value in fields.items() if value)


def _scores(scores: Scores) -> str:
    parts = {
        "FID": scores.fid, "Inception score": scores.inception_score, "sFID": scores.sfid, "precision": scores.precision,
        "recall": scores.recall,
    }  # fmt: skip
    return ", ".join(f"{name} {value:.2f}" for name, value in parts.items() if value is not None)
