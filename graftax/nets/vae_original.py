"""VAEs in the names of their authors' code (CompVis' latent diffusion; Flux's `ae.safetensors`; VA-VAE), as diffusers names
them.

Tensors tell all sizes but the number of groups, and nothing of the scale and shift of latents.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from graftax.errors import BadInput
from graftax.nets.vae import VAESpec

PREFIX = "first_stage_model."
"""What stands before the names of a VAE's tensors in files that hold a whole pipeline."""

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""What the names of its tensors begin with; others are of its losses, or of a network that it was aligned with."""

_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|attn|downsample|upsample)\.")
_STEPS = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_ATTENDING = re.compile(r"(?<=\.attentions\.)(\d+)\.(norm|q|k|v|proj_out)(?=\.)")
_LAYERS = {
    "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1", "mid.attn_1": "mid_block.attentions.0",
    "nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out",
}  # fmt: skip
"""Parts of names, theirs and diffusers'."""


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file's tensors of the VAE, without `PREFIX`, and what lies beside them."""
    found = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return {name: tensor for name, tensor in (found or tensors).items() if name.startswith(PARTS)}


def spec_of(tensors: Mapping[str, np.ndarray], like: VAESpec) -> VAESpec:
    """The spec of a VAE of these tensors, with the groups, scale and shift of `like`. Raises `BadInput` where they are no
    VAE's."""
    levels = _levels(tensors)
    firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    ends = {name: f"{name}.weight" for name in ("encoder.conv_in", "decoder.conv_in", "decoder.conv_out")}
    if not levels or (missing := [one for one in (*firsts, *ends.values()) if one not in tensors or tensors[one].ndim != 4]):
        what = missing[0] if levels else "encoder.down.0.block.0.conv1.weight"
        raise BadInput(f"{what}: missing or no convolution, expected the tensors of an autoencoder in its authors' names")
    layers = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name))}
    shapes = {name: tensors[there].shape for name, there in ends.items()}
    return dataclasses.replace(
        like, in_channels=shapes["encoder.conv_in"][1], out_channels=shapes["decoder.conv_out"][0],
        latent_channels=shapes["decoder.conv_in"][1], layers_per_block=len(layers),
        block_out_channels=tuple(tensors[name].shape[0] for name in firsts),
        use_quant_conv="quant_conv.weight" in tensors, use_post_quant_conv="post_quant_conv.weight" in tensors,
        mid_block_add_attention=any(name.startswith("decoder.mid.attn_1.") for name in tensors),
        down_attention=_attended(tensors, "encoder.down"), up_attention=_attended(tensors, "decoder.up"),
    )  # fmt: skip


def renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors by diffusers' names; of names that are none, as they are."""
    levels = _levels(tensors)
    return {_name(name, levels): tensor for name, tensor in tensors.items()}


def _levels(tensors: Mapping[str, np.ndarray]) -> int:
    """Resolutions."""
    return len({found[2] for name in tensors if (found := _LEVEL.match(name)) and name.startswith("encoder.")})


def _attended(tensors: Mapping[str, np.ndarray], where: str) -> tuple[int, ...]:
    """Numbers of the resolutions that have attention in the "encoder.down" or the "decoder.up"."""
    found = (_LEVEL.match(name) for name in tensors)
    return tuple(sorted({int(one[2]) for one in found if one and one[1] == where and one[3] == "attn"}))


def _name(name: str, levels: int) -> str:
    """Theirs number the decoder's levels from the pixels on, diffusers from the latents on."""
    if found := _LEVEL.match(name):
        where, level = found[1], int(found[2])
        number = levels - 1 - level if where == "decoder.up" else level
        name = f"{where}_blocks.{number}.{_STEPS[found[3]]}.{name[found.end() :]}"
    for theirs, ours in _LAYERS.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return _ATTENDING.sub(lambda found: f"{found[1]}.{_ATTENTION[found[2]]}", name)
