"""`graftax zoo`: the published checkpoints: what they are, what was published of them, where they are.

    graftax zoo
    graftax zoo dit-xl2-mha-swa-50p-fid2.67

Weights are not shipped and nothing is downloaded. A name from here also serves `graftax inspect`.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="a model of the list; default: print the list")


def run(args: argparse.Namespace) -> None:
    """Print the list, or one model."""
    from graftax.backbones.dit import zoo
    from graftax.pages import describe

    print(describe.zoo_entry(zoo.find(args.name)) if args.name else describe.zoo_listing(zoo.ZOO.values()))
