"""`graftax reuse`: which blocks a sampler may take from earlier steps, measured on samples.

    graftax reuse demo --share 0.6 --out reuse.txt
    graftax sample demo --reuse reuse.txt --out garments.png
    graftax sample demo --reuse "first_block(0.1)" --out garments.png

The table is for this model and these steps of this sampler. Prompts as in `graftax painters`; a class model takes none.
"""

from __future__ import annotations

import argparse
import functools

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="as in `graftax sample`")
    parser.add_argument("--share", type=float, default=0.6, metavar="X", help="of blocks to compute (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=3, metavar="N", help="steps that one is taken (default: %(default)s)")
    parser.add_argument("--prompts", metavar="FILE", help="blog (the default), random, or one a line")
    parser.add_argument("--out", default="reuse.txt", metavar="FILE", help="default: %(default)s")
    options.add_text_encoder(parser)
    options.add_overwrite(parser)
    options.add_sampling(parser)
    options.add_overrides(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, choose, write, print."""
    from graftax.checkpoint.files import replacing
    from graftax.study.reuse import find_reuse

    out = options.own_output(args.out, args.overwrite)
    read = {name: getattr(args, name) for name in ("text_encoder", "text_dtype", "latents")}
    read["overrides"], sampled = options.overrides_of(args), functools.partial(options.sampling_of, args)
    table, left = find_reuse(args.model, args.prompts, sampled, args.share, args.longest, **read)
    with replacing(out) as temporary:
        temporary.write_text(f"{table}\n")
    record = {"reuse": str(table), "blocks computed": table.share, "FLOPs left": left}
    options.answer(args, record, f"{out}: {table.share:.1%} of the blocks computed, {left:.1%} of the FLOPs left")
