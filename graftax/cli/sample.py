"""`graftax sample`: draw images from a model, of classes or of what texts say.

    graftax sample demo --labels 0,1,2,3 --out garments.png
    graftax sample runs/demo/finetuned --per-class 10 --out samples.npz
    graftax sample DiT-XL-2-256x256.pt --latents sd-vae-ft-ema --labels 207,360 --sampler ddpm --steps 250 --out animals.png
    graftax sample PixArt-Sigma-XL-2-1024-MS --prompt "a red heart" --prompt "two cats" --out pictures.png
    graftax sample runs/pixart/finetuned --text-encoder PIPELINE --latents PIPELINE --prompts FILE --out pictures.npz

A .png is one grid, a row per class with its name, or pictures with their captions below; an .npz holds `images` (n, h, w,
c) uint8 and `labels`, and is a data set that `graftax train` reads, or `captions`. Latent models without a decoder
(`--latents`) give an .npz with `latents` float32 instead.

A model of texts has its text encoder and its VAE in its own folder where that is a pipeline of diffusers; a model of words
names the vocabulary that it reads. Prompts are read first, and the encoder is let go of before the model is placed. Guidance
leads away from the encoded empty prompt, or from --negative.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftax.cli import options
from graftax.errors import BadInput

if TYPE_CHECKING:
    from graftax.data.pixels.decoding import Decode
    from graftax.evaluate.drawing import Layout
    from graftax.models import Model
    from graftax.spec import ModelSpec

OF_CLASSES = ("labels", "per_class")
OF_TEXTS = ("prompt", "prompts", "per_prompt", "negative", "text_encoder", "text_dtype", "guidance")
PER_CLASS, PER_PROMPT = 8, 1


@dataclass(frozen=True)
class Asked:
    """What is to be drawn.

    Attributes:
        model: by which.
        decode: how its arrays become pictures; None where there is no way.
        shape: of an image; None: the model's own.
        cond: conditions (n, ...).
        null: what guidance leads away from; None: the model's own.
        layout: of a .png.
        said: what an .npz says of each image.
    """

    model: Model
    decode: Decode | None
    shape: tuple[int, ...] | None
    cond: dict[str, Any]
    null: dict[str, Any] | None
    layout: Layout
    said: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, folder of a model or of a pipeline, hf://ORG/NAME, or "demo"')
    parser.add_argument("--labels", metavar="A,B,..", help="classes to draw; default: all (at most the first 16)")
    parser.add_argument("--per-class", type=int, metavar="N", help=f"images of each class (default: {PER_CLASS})")
    parser.add_argument("--per-prompt", type=int, metavar="N", help=f"images of each prompt (default: {PER_PROMPT})")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png or .npz")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images, pixels (default: the model's)")
    parser.add_argument(
        "--scale", type=int, metavar="N", help="pixels for each of a .png's images' (default: small images are magnified)"
    )
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="likewise, one a line")
    parser.add_argument("--negative", metavar="TEXT", help='what guidance leads away from (default: "")')
    options.add_text_encoder(parser)
    options.add_overwrite(parser)
    options.add_sampling(parser)
    options.add_guidance(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Draw, decode, write."""
    import numpy as np

    from graftax.evaluate import drawing
    from graftax.models.sizes import at_size

    options.suffix_of(Path(args.out), (".png", ".npz"))
    texts = _check(args)
    out = options.own_output(args.out, args.overwrite)
    asked = _of_texts(args) if texts else _of_classes(args)
    spec = asked.model.spec
    settings = options.sampling_of(args, spec if asked.shape is None else at_size(spec, np.empty((1, *asked.shape))))
    drawn = drawing.draw_with(asked.model, asked.cond, settings, null=asked.null, shape=asked.shape)
    drawing.write(out, drawn, asked.decode, asked.layout, **asked.said)
    print(f"{out}: {len(drawn)} images, {settings}")


def _check(args: argparse.Namespace) -> bool:
    """Whether texts are to be drawn. Raises `BadInput` on values out of range and flags that do not go together."""
    for name in ("per_class", "per_prompt"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"{name}: got {value}, expected 1 or more")
    if args.scale is not None and (args.scale < 1 or Path(args.out).suffix != ".png"):
        raise BadInput(f"--scale: got {args.scale} for {args.out}, expected 1 or more, for a .png")
    classes, texts = ([name for name in some if getattr(args, name) is not None] for some in (OF_CLASSES, OF_TEXTS))
    if classes and texts:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in (classes[0], texts[0]))
        raise BadInput(f"sample: got {flags}, expected those of classes or those of texts")
    if texts and args.prompt is None and args.prompts is None:
        raise BadInput(f"sample --{texts[0].replace('_', '-')}: --prompt or --prompts is missing, the texts to draw")
    return bool(texts)


def _of_classes(args: argparse.Namespace) -> Asked:
    import numpy as np

    from graftax.data.pixels import decoding
    from graftax.evaluate.drawing import in_rows
    from graftax.study.stages import open_to_draw

    classes = _classes(args.labels)

    def vet(spec: ModelSpec) -> None:
        if not spec.classes:
            raise BadInput(f"model {args.model}: takes texts, expected --prompt or --prompts")
        if outside := [c for c in classes or [] if not 0 <= c < spec.classes]:
            raise BadInput(f"labels: got {outside[0]}, expected classes 0..{spec.classes - 1}")
        _vet(args, spec)

    model, shown, decode = open_to_draw(
        args.model, lambda spec: list(range(min(spec.classes, 16))) if classes is None else classes, latents=args.latents,
        vet=vet, overrides=options.overrides_of(args),
    )  # fmt: skip
    labels = np.repeat(np.asarray(shown, np.int32), args.per_class or PER_CLASS)
    layout = in_rows(decoding.class_names(model.spec, args.latents, shown), args.scale)
    return Asked(model, decode, _shape(args, model.spec), {"y": labels}, None, layout, {"labels": labels})


def _of_texts(args: argparse.Namespace) -> Asked:
    from graftax.data.text.captions import read_prompts
    from graftax.evaluate.drawing import with_captions
    from graftax.study.text_to_image import open_pipeline

    each = args.per_prompt or PER_PROMPT
    prompts = [*(args.prompt or ()), *(read_prompts(args.prompts) if args.prompts is not None else ())]
    pipeline = open_pipeline(
        args.model, prompts, text_encoder=args.text_encoder, text_dtype=args.text_dtype, latents=args.latents,
        negative=args.negative or "", guidance=args.guidance, vet=lambda spec: _vet(args, spec),
        overrides=options.overrides_of(args),
    )  # fmt: skip
    captions = [prompt for prompt in prompts for _ in range(each)]
    columns = each if each > 1 else math.ceil(len(prompts) ** 0.5)
    shape = _shape(args, pipeline.model.spec)
    cond, null = pipeline.conditions(captions, shape), pipeline.null(shape)
    layout = with_captions(captions, columns, args.scale)
    return Asked(pipeline.model, pipeline.decode, shape, cond, null, layout, {"captions": captions})


def _vet(args: argparse.Namespace, spec: ModelSpec) -> None:
    from graftax.data.pixels import decoding

    if args.negative and options.sampling_of(args, spec).cfg_scale == 1:
        raise BadInput(f"--negative: got {args.negative!r} and no guidance (1), expected --cfg-scale above 1")
    if Path(args.out).suffix == ".png" and decoding.resolve(spec, args.latents, args.model) is None:
        raise BadInput(f"{args.out}: these latents have no decoder here, expected --latents or an .npz")
    _shape(args, spec)


def _shape(args: argparse.Namespace, spec: ModelSpec) -> tuple[int, ...] | None:
    from graftax.data.pixels import decoding
    from graftax.evaluate.drawing import shape_for

    if args.size is None:
        return None
    side = decoding.pixels_per_side(spec, args.latents, args.model)
    if side is None:
        raise BadInput("--size: in pixels, which these latents have no decoder for here; expected --latents")
    return shape_for(spec, args.size, side)


def _classes(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"labels: got {text!r}, expected class numbers like 0,1,2") from None
