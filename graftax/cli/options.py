"""Arguments that several verbs share: configs, sampling, outputs that are not overwritten by accident, answers in JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftax.errors import BadInput

if TYPE_CHECKING:
    from graftax.evaluate.geneval import Prompt
    from graftax.evaluate.geneval.folder import Drawn
    from graftax.spec import ModelSpec

OWNED = contextlib.ExitStack()
"""Locks on what the command writes; `main` lets go of them."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """What the tensors of a PyTorch file cannot tell."""
    parser.add_argument("--layout", metavar="NAME", help='file format, where tensors do not tell: "sit", "redi", "repa"')
    parser.add_argument("--num-heads", type=int, metavar="H", help="attention heads, where the file does not tell")
    parser.add_argument("--window", type=int, metavar="W", help="window of sliding-window attention, likewise")
    parser.add_argument("--interpolation", type=float, metavar="S", help="of a PixArt's positions, pixels / 512, likewise")
    parser.add_argument("--encoder-blocks", type=int, metavar="E", help="of a DDT, likewise")
    parser.add_argument(
        "--compat", choices=("dit", "diffusers"), help="whose numerics, Facebook's or diffusers' (default: dit)"
    )


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """The ones that were given, and the type of the weights."""
    names = ("layout", "num_heads", "window", "interpolation", "encoder_blocks", "compat")
    weights = getattr(args, "weights", None)
    known = {name: value for name in names if (value := getattr(args, name)) is not None}
    return known | ({} if weights is None else {"dtype": weights})


def add_config(
    parser: argparse.ArgumentParser, text: str = "config file of the experiment (see configs/)", *, required: bool = True
) -> None:
    """A config file and the folder that it works in; `text` is the help of the former."""
    parser.add_argument("--config", required=required, metavar="FILE", help=text)
    parser.add_argument("--workdir", metavar="FOLDER", help="short for --config.workdir=FOLDER")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Look before training."""
    parser.add_argument(
        "--dry-run", action="store_true",
        help="open models and data, check the mesh, print memory, parameters and shapes of the first step; train nothing",
    )  # fmt: skip


def tree_of(args: argparse.Namespace, default: Path | None = None) -> dict[str, Any]:
    """The fields that --config (or the file `default`), its overrides and --workdir give, not yet checked."""
    from graftax import config

    extra = [f"workdir={args.workdir}"] if args.workdir else []
    _refuse_contradictions([*args.overrides, *extra])
    return config.read(args.config or default, [*args.overrides, *extra])


def _refuse_contradictions(overrides: Sequence[str]) -> None:
    """Raise `BadInput` where one key is given two values."""
    given: dict[str, str] = {}
    for key, _, value in (text.partition("=") for text in overrides):
        if given.setdefault(key, value) != value:
            also = " (--workdir is short for it)" if key == "workdir" else ""
            raise BadInput(f"--config.{key}: got {given[key]!r} and {value!r}, expected one of them{also}")


def recipe_of(args: argparse.Namespace) -> Any:
    """The `Recipe` that the arguments describe; the demo's config is one too."""
    from graftax.study.config import RECIPES, experiment_of

    return experiment_of(tree_of(args), *RECIPES)


def load_data(config: Any) -> Any:
    """The images of a `DataConfig`, said what became of a subset."""
    from graftax.data.pixels import images
    from graftax.progress import say

    data = images.load(config)
    if data.note:
        say(data.note)
    return data


def _positions(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _text_or_file(text: str) -> str:
    """`text`, or what the file of that name holds."""
    return Path(text).read_text().strip() if "(" not in text and Path(text).is_file() else text


SAMPLING = {
    "sampler": (("ddpm", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "euler", "heun", "midpoint", "dopri5", "euler_maruyama",
        "sde_heun", "edm_heun"), "default, here and below: as the model's family draws (a DiT: ddim)"),
    "steps": (int, "intervals from noise to data (a DiT: 50)"),
    "cfg_scale": (float, "guidance, 1 is none (a DiT: 1.5)"),
    "cfg_channels": (int, "guided channels, 0 for all (a DiT: 3, or all where fewer)"),
    "interval": (float, "guide at sigma/alpha above the one and up to the other alone", 2),
    "cfg_power": (float, "let guidance rise by 1 - cos(pi p^X), p the share of the steps done (0: constant)"),
    "weak": (("null", "skip", "representation"), "what is guided away from: no conditions, the model without the positions "
        "--skip, or without the features that it denoises beside its latents (ReDi)"),
    "eta": (float, "noise of DDIM, 0 to 1 (a DiT: 0)"),
    "spacing": (("linspace", "time_uniform", "sd3", "tail"), "times of dpmpp_2m, rounded as diffusers' or PixArt's own, and "
        "of flows, to 0 evenly, as SD3's, or with a last interval of --last-size"),
    "last": (("zero", "sigma_min", "mean", "tweedie", "euler", "none"), "where dpmpp_2m ends, at the data or at training's "
        "least noise; the last interval of heun, and of the samplers that add noise to a flow"),
    "last_size": (float, "of that interval (default: 0.04)"),
    "shift": (float, "of the noise fractions of flows, 1 leaves them"),
    "diffusion": (str, 'noise of euler_maruyama and sde_heun: sigma, sbdm, .., or "sigma(0.5)"'),
    "churn": (float, "of edm_heun: S_churn, S_min, S_max, S_noise", 4),
    "tolerance": (float, "of dopri5, relative and absolute (default: 1e-3 1e-6)", 2),
    "skip": (_positions, "positions A,B,.. that a weaker pass skips, to be led away from that too (SD3.5-medium: 7,8,9)"),
    "skip_scale": (float, "how far away (default: 2.8)"),
    "skip_span": (float, "in which part of the steps (default: 0.01 0.2)", 2),
    "refresh": (_positions, "steps A,B,.. in which a DDT's encoder runs, 0 among them (default: all)"),
    "reuse": (_text_or_file, 'take from earlier steps what blocks do: a file of `graftax reuse`, or "first_block(0.1)"'),
}  # fmt: skip
"""Flags of sampling: choices or type, help, how many values."""


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How samples are drawn; what is not given is as the model's family draws (`SampleConfig.of`)."""
    for name, (kind, text, *count) in SAMPLING.items():
        what: dict[str, Any] = {"choices": kind} if isinstance(kind, tuple) else {"type": kind, "metavar": "X"}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **what, **({"nargs": count[0]} if count else {}))
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16", "int8"), help="type of the model's (default: as graftax.load has them)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives every model the same noise")
    parser.add_argument("--batch-size", type=int, default=100, help="images per compiled call (default: %(default)s)")
    parser.add_argument(
        "--latents", default="auto", metavar="NAME",
        help="how to decode: none, demo, an autoencoder's folder, a VAE's or pipeline's as diffusers writes it, a VAE's "
        "file, or hf:// (auto: the VAE in the model's own pipeline, else demo where the shapes are the demo's)",
    )  # fmt: skip


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """A condition of some models; guidance of the classifier-free kind is `--cfg-scale`."""
    parser.add_argument(
        "--guidance", type=float, metavar="G", help="of models that are conditioned on it, Flux-dev (its default: 3.5)"
    )


DRAWING = ("text_encoder", "text_dtype", *SAMPLING, "guidance")
"""Flags of `add_drawing` that mean nothing where no model draws."""


def add_drawing(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """How a model of texts draws a whole set of prompts."""
    add_text_encoder(parser)
    add_sampling(parser)
    add_guidance(parser)
    add_overrides(parser)
    parser.set_defaults(batch_size=batch_size)


def refuse_drawing(args: argparse.Namespace, verb: str, *more: str) -> None:
    """Raise `BadInput` where flags of drawing, or `more`, are given to a `verb` that does not draw now."""
    if given := [name for name in (*more, *DRAWING) if getattr(args, name) is not None]:
        raise BadInput(f"{verb} --{given[0].replace('_', '-')}: belongs to drawing, expected --model")


def draw_prompts(args: argparse.Namespace, prompts: Sequence[Prompt], file: str, each: int, folder: Path) -> Drawn:
    """Draw the pictures of GenEval-like prompts that `folder` does not have yet; `file` is what the prompts are called."""
    from graftax.evaluate.geneval import draw_folder
    from graftax.study.text_to_image import geneval

    draw, drawn = geneval(
        args.model, prompts, file, lambda spec: sampling_of(args, spec), each, text_encoder=args.text_encoder,
        text_dtype=args.text_dtype, latents=args.latents, guidance=args.guidance, overrides=overrides_of(args),
    )  # fmt: skip
    draw_folder(prompts, draw, folder, drawn, batch_size=args.batch_size)
    return drawn


READER = (
    "what reads the prompts: a T5's or a pipeline's folder, or scenes (default: that of the model's own pipeline, or the "
    "words that the model says it reads)"
)


def add_text_encoder(parser: argparse.ArgumentParser, what: str = READER) -> None:
    """`what` reads texts, and in which type."""
    parser.add_argument("--text-encoder", metavar="FOLDER", help=what)
    parser.add_argument("--text-dtype", choices=("bfloat16", "float32"), help="of its weights (default: as they are stored)")


def sampling_of(args: argparse.Namespace, spec: ModelSpec) -> Any:
    """The `SampleConfig` of the arguments for a model of `spec`. Raises `BadInput` where they do not fit it."""
    from graftax.evaluate.drawing import SampleConfig

    if (args.cfg_channels or 0) > (channels := spec.image_shape[-1]):
        raise BadInput(f"--cfg-channels: got {args.cfg_channels}, expected at most the model's {channels}, or 0 for all")
    given = {name: value for name in SampleConfig.__dataclass_fields__ if (value := getattr(args, name)) is not None}
    return SampleConfig.of(spec, **given)


# --- Outputs -------------------------------------------------------------------------------------------------------------


def add_overwrite(parser: argparse.ArgumentParser, what: str = "--out") -> None:
    """Without it, an output that is there already is refused."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} if it exists")


def output(name: str | Path, overwrite: bool, holds: str = "") -> Path:
    """The path that a verb writes to, checked before it does any work; nothing is made yet.

    `holds`: the file by which a folder is known as an output of this verb, where the folder itself may be there. Raises
    `BadInput` where the output exists and is not to be replaced, where it cannot be written, and where a shipped
    model is called so.
    """
    from graftax.checkpoint.shipped import NAMES

    if str(name) in NAMES:
        raise BadInput(f"{name}: the name of the model that graftax brings, expected another one")
    path = Path(name)
    if holds and path.exists() and not path.is_dir():
        raise BadInput(f"{path}: a file, expected a folder")
    if (path / holds).exists() and not overwrite:
        raise BadInput(f"{path / holds}: exists already, expected a new name or --overwrite")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise BadInput(f"{path}: {above} is a file, expected a folder")
    if not os.access(place := path if path.exists() else above, os.W_OK):
        raise BadInput(f"{path}: {place} cannot be written to")
    return path


def own_output(name: str | Path, overwrite: bool, holds: str = "") -> Path:
    """`output`, which no other process can own until this command ends; the folders above it are made."""
    own(output(name, overwrite, holds), folder=bool(holds))
    return output(name, overwrite, holds)  # once more: its last owner may have just ended


def own_model_output(name: str | Path, overwrite: bool) -> Path:
    """`own_output` of a model's folder, whose name must not look like that of a file of a format that is not written."""
    if re.search(r"\.[A-Za-z]\w*$", str(name)):
        raise BadInput(f"{name}: suffix {Path(name).suffix!r}, expected a folder's name without one, or with '/' behind it")
    return own_output(name, overwrite)


def own(path: str | Path, *, folder: bool = False) -> Path:
    """`path`, which no other process can own until this command ends; `folder` as in `graftax.checkpoint.lock.holding`."""
    from graftax.checkpoint.lock import holding

    OWNED.enter_context(holding(path, folder=folder))
    return Path(path)


def suffix_of(path: Path, allowed: Sequence[str]) -> str:
    """The suffix of `path`, one of `allowed`."""
    if path.suffix not in allowed:
        raise BadInput(f"{path}: suffix {path.suffix!r}, expected one of {', '.join(allowed)}")
    return path.suffix


# --- Answers -------------------------------------------------------------------------------------------------------------


def add_json(parser: argparse.ArgumentParser) -> None:
    """The answer for programs."""
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def answer(args: argparse.Namespace, record: Any, text: str) -> None:
    """Print what was found: as JSON (`record`, JSON types) where that was asked for, else as `text`."""
    print(json.dumps(record, indent=1, ensure_ascii=False) if args.json else text)
