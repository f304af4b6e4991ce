"""`graftax encode`: turn images into a latent set, and captions into a text store, so that no training step runs an encoder.

    graftax encode imagenet/train latents/train --vae sd-vae-ft-ema --size 256
    graftax encode tfds:imagenet2012#validation latents/validation --vae sd-vae-ft-ema --size 256
    graftax encode fashion_mnist latents --vae demo --size 32
    graftax encode --text pictures --text-encoder pixart-sigma/text_encoder text
    graftax encode pictures latents --vae pixart-sigma/vae --size 1024 --captions text

SOURCE is a folder with one sub-folder of images per class, tfds:NAME (prepared as array_record), an .npz, or
fashion_mnist. OUT then is what `data.source` names in configs: ArrayRecord shards of a VAE's moments, with a manifest. Every
epoch draws new samples of the posterior, and with data.transform=flip mirrors images at random, so moments of the mirror
image are kept too.

With --captions SOURCE is a folder of pictures with captions: a .txt beside each, or metadata.jsonl with lines
{"file_name": .., "text": ..}; or a .jsonl file of such lines anywhere. The captions' embeddings come from a text store,
which --text makes: of such a folder or .jsonl, or of a file with a prompt a line. Each distinct caption is encoded once, its
padding is not kept.

The same command continues an interrupted run, and repairs damage in a finished set: shards that are there are compared
with their checksums, the others written; with --overwrite it begins afresh. Under several JAX processes each writes its
share into OUT, a folder they share.
"""

from __future__ import annotations

import argparse
import functools

from graftax.cli import options
from graftax.errors import BadInput

SCENES = "scenes"
IMAGES_ONLY = ("vae", "size", "captions", "subset", "data_dir")
TEXTS_ONLY = ("text_encoder", "text_dtype", "max_length")
OF_EMBEDDINGS = ("text_dtype", "max_length", "dtype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="images or texts, see above")
    parser.add_argument("out", metavar="OUT", help="folder to write, or to go on writing")
    vae = "a VAE's folder as diffusers writes it, its authors' file with latents_stats.pt beside it, or demo"
    parser.add_argument("--vae", metavar="NAME", help=vae)
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: 256)")
    parser.add_argument("--captions", metavar="STORE", help="the text store of the pictures' captions")
    parser.add_argument("--text", action="store_true", help="encode the texts of SOURCE in place of its images")
    options.add_text_encoder(parser, "what embeds texts, or scenes: their token ids")
    parser.add_argument("--max-length", type=int, metavar="M", help="tokens of a text (default: as its pipeline, or 300)")
    parser.add_argument("--subset", metavar="TEXT", help="a stratified part: 8k, 10%% or '128 per class'")
    parser.add_argument("--subset-seed", type=int, default=0, metavar="N", help="which part (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: float16 for images, bfloat16 for texts"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="of them a call (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=4096, metavar="N", help="of them a shard (default: %(default)s)")
    options.add_overwrite(parser, "the set in OUT")
    parser.add_argument("--data-dir", metavar="FOLDER", help="where tensorflow-datasets keeps what it prepared")


def run(args: argparse.Namespace) -> None:
    """Encode what is not there yet."""
    from graftax.data.shards import MANIFEST

    _check(args)
    # What is there of the same set is continued, so it may be there; another is refused.
    out = options.own_output(args.out, True, MANIFEST)
    how = {"batch_size": args.batch_size, "shard_size": args.shard_size, "afresh": args.overwrite}
    if args.text:
        from graftax import text_encoder
        from graftax.data.text.encoding import encode_texts

        opened = functools.partial(text_encoder, max_length=args.max_length, dtype=args.text_dtype)
        encode_texts(args.source, out, args.text_encoder, opened, dtype=args.dtype or "bfloat16", **how)
        return
    from graftax.data.pixels.encoding import encode

    encode(
        args.source, out, args.vae, args.size or 256, subset=args.subset, subset_seed=args.subset_seed,
        dtype=args.dtype or "float16", data_dir=args.data_dir, captions=args.captions, **how,
    )  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    """Raise `BadInput` where flags do not go together."""
    given = [name for name in IMAGES_ONLY if getattr(args, name) is not None]
    if args.text and given:
        raise BadInput(f"encode --text: got --{given[0].replace('_', '-')}, which belongs to images")
    if args.text and args.text_encoder is None:
        raise BadInput("encode --text: --text-encoder is missing, the folder of what embeds the texts")
    if args.text_encoder == SCENES and any(getattr(args, name) is not None for name in OF_EMBEDDINGS):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in OF_EMBEDDINGS)
        raise BadInput(f"encode --text-encoder scenes: gives 16 token ids, expected none of {flags}")
    given = [name for name in TEXTS_ONLY if getattr(args, name) is not None]
    given += ["dtype bfloat16"] * (args.dtype == "bfloat16")
    if not args.text and given:
        raise BadInput(f"encode --{given[0].replace('_', '-')}: belongs to texts, expected --text")
    if not args.text and args.vae is None:
        raise BadInput("encode: --vae is missing, the autoencoder of the images; or --text")
    if args.captions is not None and args.data_dir is not None:
        raise BadInput("encode --captions: got --data-dir, expected a folder of pictures with captions")
