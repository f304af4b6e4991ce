"""What the `config.json` of a diffusers folder says of a transformer, believed as far as its tensors bear it out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict

from graftax.errors import BadInput
from graftax.models.layout import Config, Shapes

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Names that the weights may have beside it, today's first."""

LARGEST_SIDE = 1024
"""Side of the (latent) image that is believed: no tensor tells it, and position tables grow with its square."""


class ConfigSizes(TypedDict):
    """Sizes of a transformer as keywords of its family's spec."""

    input_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    learn_sigma: bool


_BLOCK = re.compile(r"transformer_blocks\.([0-9]{1,4})\.")


def sizes_of_config(config: Config, shapes: Shapes) -> ConfigSizes:
    """What the settings say.

    Tensors bound the depth before anything is made of it. Raises `BadInput` naming the setting.
    """
    channels, out = config_size(config, "in_channels"), config_size(config, "out_channels")
    if out not in (channels, 2 * channels):
        raise BadInput(f"config.json out_channels: {out}, expected {channels} or {2 * channels}")
    depth, heads = config_size(config, "num_layers"), config_size(config, "num_attention_heads")
    found = 1 + max((int(match[1]) for name in shapes if (match := _BLOCK.match(name))), default=-1)
    if depth != found:
        raise BadInput(f"config.json num_layers: {depth}, but the weights have {found} blocks")
    side = config_size(config, "sample_size")
    if side > LARGEST_SIDE:
        raise BadInput(f"config.json sample_size: {side}, expected at most {LARGEST_SIDE}")
    return {
        "input_size": side, "patch_size": config_size(config, "patch_size"), "in_channels": channels,
        "hidden_size": heads * config_size(config, "attention_head_dim"), "depth": depth, "num_heads": heads,
        "learn_sigma": out == 2 * channels,
    }  # fmt: skip


def config_size(config: Config, name: str) -> int:
    """A setting that must be a positive integer."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"config.json {name}: {shown(value)}, expected a positive integer")
    return value


def check_fixed(config: Config, fixed: Mapping[str, Any]) -> None:
    """Raise `BadInput` where a setting has not the one value with which the class is of this family."""
    for name, expected in fixed.items():
        if config.get(name) != expected:
            raise BadInput(f"config.json {name}: {shown(config.get(name))}, expected {expected}")


def shown(value: Any) -> str:
    """A value from a foreign file, for a message: plain characters, not many of them."""
    text = ascii(str(value))[1:-1]
    return f"{text[:80]}..." if len(text) > 80 else text
