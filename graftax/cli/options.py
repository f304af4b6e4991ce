"""Arguments that several verbs share, and outputs that are not overwritten by accident."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftax.errors import BadInput

OWNED = contextlib.ExitStack()
"""Locks on what the command writes; `main` lets go of them."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """What the tensors of a PyTorch file cannot tell."""
    parser.add_argument("--num-heads", type=int, metavar="H", help="attention heads, where the file does not tell")
    parser.add_argument("--window", type=int, metavar="W", help="window of sliding-window attention, likewise")
    parser.add_argument(
        "--compat", choices=("dit", "diffusers"), help="whose numerics, Facebook's or diffusers' (default: dit)"
    )


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """The ones that were given."""
    given = {"num_heads": args.num_heads, "window": args.window, "compat": args.compat}
    return {name: value for name, value in given.items() if value is not None}


def add_config(
    parser: argparse.ArgumentParser, text: str = "config file of the experiment (see configs/)", *, required: bool = True
) -> None:
    """A config file and the folder that it works in; `text` is the help of the former."""
    parser.add_argument("--config", required=required, metavar="FILE", help=text)
    parser.add_argument("--workdir", metavar="FOLDER", help="short for --config.workdir=FOLDER")


def tree_of(args: argparse.Namespace, default: Path | None = None) -> dict[str, Any]:
    """The fields that --config (or the file `default`), its overrides and --workdir give, not yet checked."""
    from graftax import config

    extra = [f"workdir={args.workdir}"] if args.workdir else []
    return config.read(args.config or default, [*args.overrides, *extra])


def recipe_of(args: argparse.Namespace) -> Any:
    """The `Recipe` that the arguments describe; the demo's config is one too."""
    from graftax.study.config import RECIPES, experiment_of

    return experiment_of(tree_of(args), *RECIPES)


def load_data(config: Any) -> Any:
    """The images of a `DataConfig`, said what became of a subset."""
    from graftax.data.pixels import images

    data = images.load(config)
    if data.note:
        print(data.note, flush=True)
    return data


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How samples are drawn; defaults are those of `SampleConfig`."""
    parser.add_argument("--sampler", choices=("ddpm", "ddim"), default="ddim", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default: %(default)s)")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="guidance, 1 is none (default: %(default)s)")
    parser.add_argument(
        "--cfg-channels", type=int, default=3, metavar="C", help="guided channels, 0 for all (default: %(default)s, as DiT)"
    )
    parser.add_argument("--eta", type=float, default=0.0, help="noise of DDIM, 0 to 1 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives every model the same noise")
    parser.add_argument("--batch-size", type=int, default=100, help="images per compiled call (default: %(default)s)")
    parser.add_argument(
        "--latents", default="auto", metavar="NAME",
        help="how to decode: none, demo, an autoencoder's folder, or a VAE's or pipeline's folder as diffusers writes it "
        "(auto: the VAE in the model's own pipeline, else demo where the shapes are the demo's)",
    )  # fmt: skip


def sampling_of(args: argparse.Namespace) -> Any:
    """The `SampleConfig` of the arguments."""
    from graftax.evaluate.drawing import SampleConfig

    return SampleConfig(
        sampler=args.sampler, steps=args.steps, cfg_scale=args.cfg_scale, cfg_channels=args.cfg_channels or None,
        eta=args.eta, seed=args.seed, batch_size=args.batch_size,
    )  # fmt: skip


def own(path: str | Path, *, folder: bool = False) -> Path:
    """`path`, which no other process can own until this command ends; `folder` as in `graftax.checkpoint.lock.holding`."""
    from graftax.checkpoint.lock import holding

    OWNED.enter_context(holding(path, folder=folder))
    return Path(path)


def refuse_existing(path: str | Path, overwrite: bool) -> Path:
    """`path`, owned; raises `BadInput` where it exists and `overwrite` was not asked for, or its folder does not exist."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: folder {path.parent} does not exist")
    own(path)
    if path.exists() and not overwrite:
        raise BadInput(f"{path}: exists already, expected a new name or --overwrite")
    return path


def suffix_of(path: Path, allowed: Sequence[str]) -> str:
    """The suffix of `path`, one of `allowed`."""
    if path.suffix not in allowed:
        raise BadInput(f"{path}: suffix {path.suffix!r}, expected one of {', '.join(allowed)}")
    return path.suffix
