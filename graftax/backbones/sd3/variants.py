"""Stable Diffusion 3 (arXiv 2403.03206) and 3.5: published variants as specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Prediction, Sizes, op

TEXT_WIDTH, POOLED_WIDTH = 4096, 768 + 1280
"""Channels of a text's tokens, those of T5-XXL, to which CLIP's are filled up by zeros; and of both CLIPs' pooled texts."""

TEXT_TOKENS = 77 + 256
"""Tokens of a text: CLIP's, then T5's."""

INPUT_SIZE, PATCH, CHANNELS = 128, 2, 16
"""Side of the latent of 1024 pixels that all published models were made for, side of a token in it, its channels."""

QK_NORMS = ("none", "rms")
"""Norms of queries and keys: none in SD3, with a scale for each channel of a head in SD3.5."""

PREDICTION = Prediction("velocity", "noise", variance=False, scale=1000.0)

HEADS = {1536: 24, 2432: 38}
"""Width -> heads of the published models."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "sd3-medium": {"hidden_size": 1536, "depth": 24},
    "sd3.5-medium": {
        "hidden_size": 1536, "depth": 24, "positions": 384, "qk_norm": "rms", "dual_attention": range(13),
    },
    "sd3.5-large": {"hidden_size": 2432, "depth": 38, "qk_norm": "rms"},
}  # fmt: skip
"""Published models by name: arguments of `sd3_spec`."""


def sd3_spec(
    *, hidden_size: int, depth: int, num_heads: int, input_size: int = INPUT_SIZE, patch_size: int = PATCH,
    in_channels: int = CHANNELS, positions: int = 192, text_width: int = TEXT_WIDTH, text_tokens: int = TEXT_TOKENS,
    pooled_width: int = POOLED_WIDTH, qk_norm: str = "none", dual_attention: Iterable[int] = (),
) -> ModelSpec:  # fmt: skip
    """Spec of an SD3.

    `input_size` is the side of the latent image, `positions` that of the table of positions; `text_width`, `text_tokens` and
    `pooled_width` are those of the text's embeddings; `qk_norm` norms queries and keys of every attention; `dual_attention`
    are the blocks whose image has a second attention. Raises `BadInput` on sizes that do not go together.
    """
    made = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=depth,
        in_channels=in_channels, positions=positions, text_width=text_width, text_tokens=text_tokens,
        pooled_width=pooled_width,
    )  # fmt: skip
    if qk_norm not in QK_NORMS:
        raise BadInput(f"qk_norm: got {qk_norm!r}, expected one of {QK_NORMS}{did_you_mean(qk_norm, QK_NORMS)}")
    sizes, dual = replace(made, text=text_tokens), set(dual_attention)
    if not dual <= set(range(depth - 1)):
        raise BadInput(f"dual_attention: got {sorted(dual)}, expected blocks 0..{depth - 2}, not the last")
    kinds = ["sd3_dual" if i in dual else "sd3" for i in range(depth - 1)]
    made_once = {kind: _block(kind, sizes, qk_norm) for kind in ("sd3", "sd3_dual", "sd3_last")}
    frame = (
        ("patch", patch_size), ("channels", in_channels), ("positions", positions), ("text_width", text_width),
        ("pooled_width", pooled_width),
    )  # fmt: skip
    blocks = tuple(made_once[kind] for kind in (*kinds, "sd3_last"))
    return ModelSpec("sd3", sizes, frame, PREDICTION, blocks)


def _block(kind: str, sizes: Sizes, qk_norm: str) -> BlockSpec:
    adaln, mlp, norm = op("adaln"), op("mlp"), op("layer_norm", affine=False, eps=1e-6)
    attn = op("joint_mha", qk_norm=qk_norm, text_out=kind != "sd3_last")
    held: dict[str, OpSpec] = {"img/adaln": adaln, "img/norm1": norm, "img/norm2": norm, "img/mlp": mlp, "attn": attn}
    held |= {"txt/adaln": adaln, "txt/norm1": norm}
    if kind != "sd3_last":
        held |= {"txt/norm2": norm, "txt/mlp": mlp}
    if kind == "sd3_dual":
        held["img/attn2"] = op("mha_normed", qk_norm=qk_norm)
    return resolve(kind, sizes, held)


def plain_like(spec: ModelSpec) -> ModelSpec:
    """The SD3 as published of the same sizes as `spec`; equal to it where `spec` is one. Raises what `sd3_spec` raises."""
    qk_norm = next((held.option("qk_norm", "none") for slot, held in spec.blocks[0].ops if slot == "attn"), "none")
    return sd3_spec(
        hidden_size=spec.width, depth=spec.depth, num_heads=spec.sizes.heads, input_size=spec.image_shape[0],
        patch_size=spec.option("patch"), in_channels=spec.option("channels"), positions=spec.option("positions"),
        text_width=spec.option("text_width"), text_tokens=spec.sizes.text, pooled_width=spec.option("pooled_width"),
        qk_norm=qk_norm, dual_attention=dual_blocks(spec),
    )  # fmt: skip


def dual_blocks(spec: ModelSpec) -> list[int]:
    """Numbers of the blocks whose image has a second attention."""
    return [i for i, block in enumerate(spec.blocks) if block.kind == "sd3_dual"]


def variant(name: str) -> ModelSpec:
    """Spec of a published model by name, "sd3.5-medium". Raises `BadInput` on an unknown name."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {tuple(VARIANTS)}{did_you_mean(name, VARIANTS)}")
    sizes = VARIANTS[name]
    return sd3_spec(num_heads=HEADS[sizes["hidden_size"]], **sizes)
