"""`graftax painters`: layers as painters on any model: skipped, repeated, reversed, shuffled, in parallel, one page.

    graftax painters FLUX_PIPELINE --prompts blog --out runs/painters/flux
    graftax painters SD3_PIPELINE --out runs/painters/sd3 --beside runs/painters/flux
    graftax painters scenes --judge 10 --out runs/painters/scenes

Prompts: blog (five), a file with one a line, or random (numbers in place of texts, needs no text encoder); a class model
takes none. The folder gets painters.json, painters.html and its pictures. --judge N: of a model of scenes, what the judge
reads in the pictures of N captions of each category for each of three seeds: judged.json.
"""

from __future__ import annotations

import argparse
import functools

from graftax.cli import options
from graftax.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="as in `graftax sample`")
    parser.add_argument("--prompts", metavar="FILE", help="blog (the default), random, or one a line")
    parser.add_argument("--per-prompt", type=int, default=4, metavar="N", help="noises for each (default: %(default)s)")
    parser.add_argument("--judge", type=int, metavar="N", help="captions of each category of scenes, in place of prompts")
    parser.add_argument("--orders", type=int, default=10, metavar="N", help="random orders (default: %(default)s)")
    parser.add_argument("--beside", action="append", default=[], metavar="FOLDER", help="of other models, to compare groups")
    parser.add_argument("--out", default="runs/painters", metavar="FOLDER", help="default: %(default)s")
    options.add_text_encoder(parser)
    options.add_overwrite(parser)
    options.add_sampling(parser)
    options.add_overrides(parser)
    parser.set_defaults(batch_size=4)


def run(args: argparse.Namespace) -> None:
    """Measure, write, print."""
    from graftax.pages import painting_page as page
    from graftax.study import judged, painting

    sampled = functools.partial(options.sampling_of, args)
    read = {name: getattr(args, name) for name in ("text_encoder", "text_dtype", "latents")}
    read["overrides"] = options.overrides_of(args)
    if args.judge is not None:
        if args.prompts or args.beside:
            raise BadInput("painters --judge: brings captions of its own, expected neither --prompts nor --beside")
        folder = options.own_output(args.out, args.overwrite, judged.FOUND)
        return print(judged.write(judged.judge_orders(args.model, sampled, args.judge, **read), folder))
    folder, beside = options.own_output(args.out, args.overwrite, page.FOUND), [page.read(one) for one in args.beside]
    subject, asked = painting.ask(args.model, args.prompts, sampled, args.per_prompt, args.orders, **read)
    print("\n".join(page.write(args.model, painting.measure(subject, asked), folder, subject.decode, beside)))
