"""VAEs from files: Hugging Face diffusers' folder layout (class AutoencoderKL): sd-vae-ft-ema, -mse, SDXL's, SD3's, Flux's;
and single files in the authors' names (`graftax.nets.vae_original`).

A folder holds `config.json` and `diffusion_pytorch_model.safetensors` (older ones `.bin`), by itself or as `vae/` of a
pipeline. `latents_stats.pt` in it, or beside a file, says how models see the latents normalised channel by channel. Tensors
are named as our parameters, but for the tables below; folders of before 2023 name attention's projections otherwise, those
made from the original code keep them as 1x1 convolutions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.hub import Absent, fetched, is_hub
from graftax.checkpoint.hugging_face import CONFIG, read_config, read_weights, renamed, shapes_of
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import OTHER_SUFFIXES, TORCH_SUFFIXES, Source, read_mapped, read_safetensors, read_tensors
from graftax.checkpoint.torch_reader import read_torch
from graftax.errors import BadInput, naming
from graftax.nets import vae, vae_original
from graftax.nets.vae import VAESpec

CLASS = "AutoencoderKL"
PART = "vae"
"""The folder of a pipeline that holds it."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Names that the weights may have, best first."""

DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (64,), "layers_per_block": 1,
    "norm_num_groups": 32, "scaling_factor": 0.18215, "shift_factor": None, "use_quant_conv": True,
    "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
"""What diffusers takes where `config.json` says nothing: sd-vae-ft-ema's knows no scaling_factor."""

BLOCKS = {"down": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), "up": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}
"""What diffusers calls the residual blocks of a width in encoder and decoder, without and with attention."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out"}
RENAMED = {"downsamplers.0.conv": "downsample", "upsamplers.0.conv": "upsample", "to_out.0": "to_out"}
"""Parts of tensor names, theirs and ours."""

STATS = "latents_stats.pt"
"""A file of {"mean", "std"}, each (1, c, 1, 1), as LightningDiT's: models see (raw - mean) / std."""

MOST_WIDTHS, MOST_LAYERS, LARGEST_WIDTH = 8, 16, 8192
"""Sizes that are believed before anything is made of them."""


def find_vae(path: str | Path) -> Path | None:
    """The folder with a VAE's `config.json`: `path`, or `path/vae` of a pipeline, fetched where it is an address hf://; or
    `path` itself, a file of weights that is not ours, with the statistics beside it; None if there is none."""
    try:
        folder = fetched(path, PART)
    except Absent:
        return None
    if folder.is_file():
        if is_hub(path):
            with contextlib.suppress(Absent):
                fetched(Path(path).with_name(STATS))
        return folder if _of_others(folder) else None
    return next((one for one in (folder, folder / PART) if (one / CONFIG).is_file()), None)


def _of_others(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return not read_safetensors(file)[1].get("format", "").startswith("graftax")
    return file.suffix in (*TORCH_SUFFIXES, *OTHER_SUFFIXES)


def stats_path(found: Path) -> Path:
    """Where the statistics of the latents of a VAE that `find_vae` found lie, if there are any."""
    return found.with_name(STATS) if found.is_file() else found / STATS


def load_vae(path: str | Path, like: VAESpec | None = None) -> tuple[VAESpec, dict[str, Any]]:
    """(spec, params float32 numpy) of a VAE, see `read_vae`."""
    spec, params, _ = read_vae(path, like)
    return spec, params


def read_vae(path: str | Path, like: VAESpec | None = None) -> tuple[VAESpec, dict[str, Any], Source]:
    """(spec, params float32 numpy, source) of a diffusers folder of class AutoencoderKL or a pipeline that has one, or of a
    file in the authors' names. Such a file does not say groups, scale and shift: they are those of `like`, but that a
    `latents_stats.pt` beside it says the last two, and groups are 32 without a `like`.

    `source.sha256` is that of the weights file. Raises `BadInput` naming the file and what is missing, unexpected or
    mis-shaped, and on settings that this code does not compute.
    """
    found = find_vae(path)
    if found is None:
        raise BadInput(f"{path}: no VAE, expected a folder with {CONFIG} or vae/{CONFIG}, or a file of weights")
    spec = vae_spec(found, like)
    tensors, source = read_tensors(found) if found.is_file() else read_weights(found, WEIGHTS)
    with naming(found if found.is_file() else found / source.name):
        own = vae_original.renamed(vae_original.own(tensors)) if found.is_file() else tensors
        return spec, params_from_tensors(spec, own), source


# --- Sizes ---------------------------------------------------------------------------------------------------------------


def vae_spec(folder: Path, like: VAESpec | None = None) -> VAESpec:
    """What the VAE in a folder is, by its `config.json`; or in a file by its tensors' shapes, and `like`. Raises `BadInput`
    as `read_vae` does; weights are not looked at."""
    stats = stats_path(folder)
    if folder.is_file():
        with naming(folder):
            spec = _spec_of_file(folder, like, stats.is_file())
    else:
        config = read_config(folder, "diffusers", [CLASS])
        with naming(folder / CONFIG):
            spec = spec_from_config(config)
    return with_stats(spec, stats) if stats.is_file() else spec


def _spec_of_file(file: Path, like: VAESpec | None, normalised: bool) -> VAESpec:
    untold = BadInput(f"does not say how its latents are scaled, expected {STATS} beside it or a VAE's folder of diffusers")
    if not normalised and (like is None or not like.scaled):
        raise untold
    spec = vae_original.spec_of(vae_original.own(read_mapped(file)[0]), like or vae.SD)
    if not normalised and like and like.latent_channels != spec.latent_channels:
        raise untold  # `like` says it of other latents
    return spec


def with_stats(spec: VAESpec, path: Path) -> VAESpec:
    """`spec`, whose models see latents at the mean and deviation of each channel that a file says (`STATS`), and not scaled
    besides. Raises `BadInput` where it does not say these."""
    found = read_torch(path)
    with naming(path):
        return _normalised(spec, 1.0, {name: found.get(name) for name in ("mean", "std")})


def _normalised(spec: VAESpec, scale: float, stats: Mapping[str, object]) -> VAESpec:
    """`spec`, whose models see (raw - mean) / deviation * scale, by the two in `stats` in this order."""
    (mean, means), (deviation, deviations) = stats.items()
    shift = _for_each_channel(spec, mean, means, -np.inf)
    factor = scale / _for_each_channel(spec, deviation, deviations, 0.0)
    return dataclasses.replace(spec, scaling_factor=tuple(factor.tolist()), shift_factor=tuple(shift.tolist()))


def _for_each_channel(spec: VAESpec, name: str, value: object, least: float) -> np.ndarray:
    try:
        values = np.asarray(value if isinstance(value, np.ndarray | list) else (), np.float64).reshape(-1)
    except (TypeError, ValueError):  # texts, lists of lists
        values = np.zeros(0)
    if len(values) != spec.latent_channels or not np.isfinite(values).all() or values.min() <= least:
        count = f"{spec.latent_channels} finite numbers" + ", positive" * (least == 0)
        raise BadInput(f"{name} is {shown(str(value))}, expected {count}, one for each channel")
    return values


def spec_from_config(config: Mapping[str, Any]) -> VAESpec:
    """The spec that a `config.json` of AutoencoderKL describes. Raises `BadInput` on what this code does not compute."""
    fields = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    widths = fields["block_out_channels"]
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MOST_WIDTHS:
        raise BadInput(f"block_out_channels: {shown(str(widths))}, expected 1 to {MOST_WIDTHS} widths")
    if (act := config.get("act_fn", "silu")) != "silu":
        raise BadInput(f"act_fn: {shown(str(act))}, expected silu")
    fields |= {f"{way}_attention": _attention(config, way, len(widths)) for way in BLOCKS}
    fields |= {"block_out_channels": tuple(widths), "shift_factor": fields["shift_factor"] or 0.0}
    spec = VAESpec(**fields)
    if spec.layers_per_block > MOST_LAYERS or max(spec.block_out_channels) > LARGEST_WIDTH:
        raise BadInput(f"layers_per_block, block_out_channels: expected at most {MOST_LAYERS} and {LARGEST_WIDTH}")
    stats = {name: config.get(name) for name in ("latents_mean", "latents_std")}
    if all(value is None for value in stats.values()):
        return spec
    if spec.shift_factor:
        raise BadInput(f"shift_factor: {spec.shift_factor} beside latents_mean, expected one of the two")
    return _normalised(spec, fields["scaling_factor"], stats)  # as diffusers' pipelines of SDXL undo it


def _attention(config: Mapping[str, Any], way: str, count: int) -> tuple[int, ...]:
    """Numbers of the widths whose blocks "down" or "up" attend; a config lists the latter from the lowest resolution on."""
    kinds, name = BLOCKS[way], f"{way}_block_types"
    found = config.get(name, [kinds[0]] * count)
    if not isinstance(found, list) or len(found) != count or any(kind not in kinds for kind in found):
        raise BadInput(f"{name}: {shown(str(found))}, expected {count} of {kinds}")
    return tuple(i for i, kind in enumerate(found if way == "down" else found[::-1]) if kind == kinds[1])


def block_types(spec: VAESpec) -> dict[str, list[str]]:
    """What a `config.json` of AutoencoderKL says of the blocks that attend: "down_block_types" and "up_block_types"."""
    (down, up), count = BLOCKS.values(), len(spec.block_out_channels)
    return {
        "down_block_types": [down[i in spec.down_attention] for i in range(count)],
        "up_block_types": [up[i in spec.up_attention] for i in reversed(range(count))],
    }


# --- Tensors -------------------------------------------------------------------------------------------------------------


def params_from_tensors(spec: VAESpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree float32 of a flat state dict as diffusers names it.

    Raises `BadInput` on missing, unexpected and mis-shaped tensors.
    """
    return renamed(tensors, shapes_of(vae.init, spec), our_path, _our_layout)


def our_path(name: str) -> str:
    """Path of the parameter that diffusers calls `name`: "decoder.up_blocks.0.resnets.1.conv1.weight" -> our tree."""
    layer, _, leaf = name.rpartition(".")
    for theirs, ours in RENAMED.items():
        layer = layer.replace(theirs, ours)
    *parts, last = layer.split(".")
    if "attentions" in parts:
        last = OLD_ATTENTION.get(last, last)
    layer = re.sub(r"\.([0-9]+)", r"_\1", ".".join([*parts, last]))
    layer = re.sub(r"((?:down|up)_blocks_[0-9]+)\.", r"\1_", layer)
    kind = {"weight": "scale" if "norm" in layer.rpartition(".")[2] else "kernel"}.get(leaf, leaf)
    return f"{layer.replace('.', '/')}/{kind}"


def _our_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor in our order of axes, float32: convolutions (h, w, in, out), linear layers (in, out)."""
    tensor = tensor.astype(np.float32)
    if not path.endswith("kernel"):
        return tensor
    if "/to_" in path and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
