"""`graftax encode`: turn images into a latent set: ArrayRecord shards of a VAE's moments, with a manifest.

    graftax encode imagenet/train latents/train --vae sd-vae-ft-ema --size 256
    graftax encode tfds:imagenet2012#validation latents/validation --vae sd-vae-ft-ema --size 256
    graftax encode fashion_mnist latents --vae demo --size 32

SOURCE is a folder with one sub-folder of images per class, tfds:NAME (prepared as array_record), an .npz, or
fashion_mnist. OUT then is what `data.source` names in configs: every epoch draws new samples of the posterior, and with
data.transform=flip mirrors images at random, so moments of the mirror image are kept too.

The same command continues an interrupted run, and repairs damage in a finished set: shards that are there are compared
with their checksums, the others written; with --overwrite it begins afresh. Under several JAX processes each writes its
share into OUT, a folder they share.
"""

from __future__ import annotations

import argparse

from graftax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="images, see above")
    parser.add_argument("out", metavar="OUT", help="folder to write, or to go on writing")
    parser.add_argument("--vae", required=True, metavar="NAME", help="a VAE's folder as diffusers writes it, or demo")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--subset", metavar="TEXT", help="a stratified part: 8k, 10%% or '128 per class'")
    parser.add_argument("--subset-seed", type=int, default=0, metavar="N", help="which part (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a call (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=4096, metavar="N", help="images a shard (default: %(default)s)")
    options.add_overwrite(parser, "the set in OUT")
    parser.add_argument("--data-dir", metavar="FOLDER", help="where tensorflow-datasets keeps what it prepared")


def run(args: argparse.Namespace) -> None:
    """Encode what is not there yet."""
    from graftax.data.latents import MANIFEST
    from graftax.data.pixels.encoding import encode

    # What is there of the same set is continued, so it may be there; `encode` refuses another.
    out = options.own_output(args.out, True, MANIFEST)
    encode(
        args.source, out, args.vae, args.size, subset=args.subset, subset_seed=args.subset_seed, dtype=args.dtype,
        batch_size=args.batch_size, shard_size=args.shard_size, data_dir=args.data_dir,
        afresh=args.overwrite,
    )  # fmt: skip
