"""`graftax synthesize`: let a model draw a training set for its own grafts: latents for prompts, as a latent set.

    graftax synthesize demo labels.txt drawn
    graftax synthesize pixart-sigma text drawn --steps 20 --cfg-scale 4.5 --compute-dtype bfloat16

PROMPTS is a file with a class a line for a model of classes; for a model of texts it is a text store, which
`graftax encode --text` makes of a file with a prompt a line. OUT then is what `data.source` names in configs, with
data.latents=given: the latents, the class or caption of each, the protocol that drew them. The first images are decoded as
OUT/preview/*.png.

Image i is of prompt i / --per-prompt, and depends on the seed and on i alone. Guidance leads texts away from the encoded
empty prompt, as PixArt is published, or with --null model from what the model learnt in place of captions.

The same command continues an interrupted run, and repairs damage in a finished set; what belongs to another model, protocol
or prompts is refused; with --overwrite it begins afresh. Images are spread over the devices; under several JAX processes
each draws its share into OUT, a folder they share.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, folder of a model or of a pipeline, hf://ORG/NAME, or "demo"')
    parser.add_argument("prompts", metavar="PROMPTS", help="a file of classes, or a text store")
    parser.add_argument("out", metavar="OUT", help="folder to write, or to go on writing")
    parser.add_argument("--per-prompt", type=int, default=1, metavar="N", help="images of each (default: %(default)s)")
    parser.add_argument("--null", choices=("empty", "model"), help="see above (default: empty, of token ids: model)")
    kept, computed = ("float16", "float32"), ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=kept, default=kept[0], help="of the latents (default: %(default)s)")
    parser.add_argument(
        "--compute-dtype", choices=computed, default=computed[0], help="of matrix products (default: %(default)s)"
    )
    parser.add_argument("--shard-size", type=int, default=512, metavar="N", help="images a shard (default: %(default)s)")
    parser.add_argument("--preview", type=int, default=16, metavar="N", help="images to decode (default: %(default)s)")
    options.add_overwrite(parser, "the set in OUT")
    options.add_sampling(parser)
    options.add_guidance(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Draw what is not there yet."""
    from graftax.data.shards import MANIFEST
    from graftax.evaluate.synthesis import open_prompts, synthesize
    from graftax.study import stages

    # What is there of the same set is continued, so it may be there; `synthesize` refuses another.
    out = options.own_output(args.out, True, MANIFEST)
    model, prompts, decode = stages.open_to_draw(
        args.model, lambda spec: open_prompts(args.prompts, spec), latents=args.latents if args.preview else "none",
        vet=lambda spec: options.sampling_of(args, spec), overrides=options.overrides_of(args),
    )  # fmt: skip
    synthesize(
        args.model, model, prompts, out, options.sampling_of(args, model.spec), per_prompt=args.per_prompt, null=args.null,
        guidance=args.guidance, compute_dtype=args.compute_dtype, dtype=args.dtype, shard_size=args.shard_size,
        preview=args.preview, decode=decode, afresh=args.overwrite,
    )  # fmt: skip
