"""`graftax sample`: draw images from a model.

    graftax sample demo --labels 0,1,2,3 --out garments.png
    graftax sample runs/demo/finetuned --per-class 10 --out samples.npz
    graftax sample DiT-XL-2-256x256.pt --latents sd-vae-ft-ema --labels 207,360 --sampler ddpm --steps 250 --out animals.png

A .png is one grid, a row per class with its name; an .npz holds `images` (n, h, w, c) uint8 and `labels`, and is a data set
that `graftax train` reads. Latent models without a decoder (`--latents`) give an .npz with `latents` float32 instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from graftax.cli import options
from graftax.errors import BadInput

if TYPE_CHECKING:
    from graftax.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, or "demo"')
    parser.add_argument("--labels", metavar="A,B,..", help="classes to draw; default: all (at most the first 16)")
    parser.add_argument("--per-class", type=int, default=8, metavar="N", help="images of each (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png or .npz")
    parser.add_argument(
        "--scale", type=int, metavar="N", help="pixels for each of a .png's images' (default: small images are magnified)"
    )
    options.add_overwrite(parser)
    options.add_sampling(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Draw, decode, write."""
    import numpy as np

    from graftax.data.pixels import decoding
    from graftax.evaluate import drawing
    from graftax.study import stages

    options.suffix_of(Path(args.out), (".png", ".npz"))
    out = options.own_output(args.out, args.overwrite)
    if args.per_class < 1:
        raise BadInput(f"per-class: got {args.per_class}, expected 1 or more")
    if args.scale is not None and (args.scale < 1 or out.suffix != ".png"):
        raise BadInput(f"--scale: got {args.scale} for {out}, expected 1 or more, for a .png")
    classes = _classes(args.labels)
    overrides = options.overrides_of(args)
    model = stages.open_model(args.model, lambda spec: _vet(args, classes, spec), **overrides)
    settings = options.sampling_of(args, model.spec)
    decode = decoding.decoder_for(model.spec, args.latents, args.model)
    if decode is None and out.suffix == ".png":
        raise BadInput(f"{out}: these latents have no decoder here, expected --latents or an .npz")
    shown = classes if classes is not None else list(range(min(model.spec.classes, 16)))
    labels = np.repeat(np.asarray(shown, np.int32), args.per_class)
    drawn = drawing.draw(model, labels, settings)
    drawing.write(out, drawn, decode, labels, decoding.class_names(model.spec, args.latents, shown), args.scale)
    print(f"{out}: {len(labels)} images, {settings}")


def _classes(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"labels: got {text!r}, expected class numbers like 0,1,2") from None


def _vet(args: argparse.Namespace, classes: list[int] | None, spec: ModelSpec) -> None:
    options.sampling_of(args, spec)
    if outside := [c for c in classes or [] if not 0 <= c < spec.classes]:
        raise BadInput(f"labels: got {outside[0]}, expected classes 0..{spec.classes - 1}")
