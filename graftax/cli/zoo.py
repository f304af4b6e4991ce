"""`graftax zoo`: the published checkpoints: what they are, what was published of them, where they are.

    graftax zoo
    graftax zoo dit-xl2-mha-swa-50p-fid2.67
    graftax zoo PixArt-Sigma-XL-2-1024-MS

Weights are not shipped and nothing is downloaded. A name from here also serves `graftax inspect`.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="a model of the list; default: print the list")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the list, or one model."""
    from graftax.backbones import zoo
    from graftax.pages import zoo_page

    if args.name:
        model = zoo.find(args.name)
        options.answer(args, zoo_page.record(model), zoo_page.entry(model))
    else:
        models = list(zoo.ZOO.values())
        options.answer(args, [zoo_page.record(model) for model in models], zoo_page.listing(models))
