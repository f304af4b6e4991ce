"""AuraFlow (fal, 2024): published variants as specs."""

from __future__ import annotations

import math
from dataclasses import replace

from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, OpSpec, Prediction, op

JOINT, SINGLE, WIDTH, HEADS = 4, 32, 3072, 12
"""Of the one published size."""

TEXT_WIDTH, TEXT_TOKENS = 2048, 256
"""Channels of the embeddings of Pile-T5-XL, and tokens of a prompt, padding included."""

REGISTERS = 8
"""Learned tokens in front of the text."""

SIDE = 64
"""Tokens on a side of the images that its authors draw by default, 1024 pixels."""

POSITIONS = {"auraflow-0.2": 4096, "auraflow-0.3": 9216}
"""Rows of the table of positions, by variant."""

VARIANTS = tuple(POSITIONS)


def hidden_width(width: int) -> int:
    """Of the channel mixers: 8 / 3 of the width, up to a multiple of 256."""
    return 256 * math.ceil(8 * width // 3 / 256)


def auraflow_blocks(hidden: int, width: int) -> tuple[dict[str, OpSpec], dict[str, OpSpec]]:
    """What a joint and what a single block hold, by slot; `hidden`: width inside of the channel mixers."""
    around = {
        "adaln": op("adaln_no_bias"), "norm1": op("layer_norm", affine=False, eps=1e-5),
        "norm2": op("layer_norm", affine=False, eps=1e-5), "mlp": op("swiglu", ratio=hidden / width, bias=False),
    }  # fmt: skip
    attention = {"qk_norm": "layer", "bias": "none"}
    joint = {f"{stream}/{slot}": held for stream in ("img", "txt") for slot, held in around.items()}
    return {**joint, "attn": op("joint_mha", **attention)}, {**around, "mixer": op("mha_normed", **attention)}


def auraflow_spec(
    *, input_size: int, joint: int, single: int, hidden_size: int, num_heads: int, positions: int, patch_size: int = 2,
    in_channels: int = 4, text_width: int = TEXT_WIDTH, text_tokens: int = TEXT_TOKENS, registers: int = REGISTERS,
    mlp_hidden: int | None = None,
) -> ModelSpec:  # fmt: skip
    """Spec of an AuraFlow: `joint` blocks of two streams, then `single` ones of both as one sequence.

    `input_size` is the side of the (latent) image, `positions` the rows of the table of positions, a square number;
    `text_width` and `text_tokens` are those of the prompt's embedding, to which `registers` tokens are added; `mlp_hidden`
    is the width inside of the channel mixers, None for the authors' rule. Raises `BadInput` on sizes that do not go
    together.
    """
    hidden = hidden_width(hidden_size) if mlp_hidden is None else mlp_hidden
    made = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=joint + single,
        in_channels=in_channels, positions=positions, text_width=text_width, text_tokens=text_tokens,
        registers=registers, mlp_hidden=hidden,
    )  # fmt: skip
    sizes = replace(made, text=registers + text_tokens)
    frame = (
        ("patch", patch_size), ("channels", in_channels), ("positions", positions), ("registers", registers),
        ("text_width", text_width),
    )  # fmt: skip
    held = auraflow_blocks(hidden, hidden_size)
    first, second = (resolve(kind, sizes, one) for kind, one in zip(("aura_joint", "aura_single"), held, strict=True))
    blocks = (first,) * joint + (second,) * single
    return ModelSpec("auraflow", sizes, frame, Prediction("velocity", "noise", variance=False), blocks)


def own_side(positions: int) -> int:
    """Tokens on a side of a model's own images: its authors' default, or all positions where there are fewer."""
    return min(math.isqrt(positions), SIDE)


def variant(name: str) -> ModelSpec:
    """Spec of a published model, "auraflow-0.2", on images of 1024 pixels. Raises `BadInput` on an unknown name."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    positions = POSITIONS[name]
    return auraflow_spec(
        input_size=2 * own_side(positions), joint=JOINT, single=SINGLE, hidden_size=WIDTH, num_heads=HEADS,
        positions=positions,
    )  # fmt: skip
