"""Flux (FLUX.1, Black Forest Labs): published variants as specs."""

from __future__ import annotations

from dataclasses import replace

from graftax.backbones.flux.frame import axes_text, default_axes
from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Prediction, Sizes, op

PATCH, CHANNELS = 2, 16
"""Side of a token in the latent, and the latent's channels."""

DOUBLE, SINGLE, WIDTH, HEADS = 19, 38, 3072, 24
INPUT_SIZE = 128
"""Side of the latent at 1024 pixels."""

TEXT_WIDTH, POOLED_WIDTH = 4096, 768
"""Channels of T5-XXL's embeddings, and of CLIP-L's pooled one."""

TEXT_TOKENS = {False: 256, True: 512}
"""Tokens of a text, padding included, by whether guidance is a condition: of schnell and dev."""

VARIANTS = ("flux-schnell", "flux-dev")


def double_block(
    sizes: Sizes, attn: OpSpec | None = None, img_mlp: OpSpec | None = None, txt_mlp: OpSpec | None = None
) -> BlockSpec:
    """A block of two streams, with ratio-4 MLPs unless given otherwise."""
    norm, held = op("layer_norm", affine=False, eps=1e-6), dict[str, OpSpec]()
    for name, mlp in {"img": img_mlp, "txt": txt_mlp}.items():
        norms = {f"{name}/norm1": norm, f"{name}/norm2": norm}
        held |= {f"{name}/adaln": op("adaln"), **norms, f"{name}/mlp": mlp or op("mlp")}
    return resolve("double", sizes, {**held, "attn": attn or op("joint_mha", qk_norm="rms")})


def single_block(sizes: Sizes, mixer: OpSpec | None = None, mlp: OpSpec | None = None) -> BlockSpec:
    """A block of one stream; the bias of its one output layer is the MLP's."""
    held = {"adaln": op("adaln"), "norm": op("layer_norm", affine=False, eps=1e-6)}
    own = {"mixer": mixer or op("mha_normed", qk_norm="rms", bias="in"), "mlp": mlp or op("mlp")}
    return resolve("single", sizes, {**held, **own})


def flux_spec(
    *, input_size: int, hidden_size: int, num_heads: int, double: int, single: int, patch_size: int = PATCH,
    in_channels: int = CHANNELS, text_width: int = TEXT_WIDTH, text_tokens: int = TEXT_TOKENS[False],
    pooled_width: int = POOLED_WIDTH, guidance: bool = False, rope_axes: object = None, mixer: OpSpec | None = None,
    words: int = 0, text_blocks: int = 2, text_heads: int = 4, vocabulary: str = "",
) -> ModelSpec:  # fmt: skip
    """Spec of a Flux of `double` blocks of two streams, then `single` blocks of one.

    `input_size` is the side of the (latent) image, `text_width` and `text_tokens` are those of the text, `pooled_width` that
    of the pooled text (0: none), `guidance` whether it is a condition, `rope_axes` a head's rotary channels for index, row
    and column (None: in Flux's proportions), `mixer` that of the single blocks. With `words` the model reads
    numbers of so many words by a text encoder of its own (`graftax.backbones.words`), of `text_blocks` blocks with
    `text_heads` heads; `vocabulary` names whose words they are. Raises `BadInput` on sizes that do not go together.
    """
    made = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads,
        in_channels=in_channels, text_width=text_width, text_tokens=text_tokens,
    )  # fmt: skip
    if not isinstance(pooled_width, int) or isinstance(pooled_width, bool) or pooled_width < 0:
        raise BadInput(f"pooled_width: got {pooled_width!r}, expected an integer from 0")
    if min(double, single) < 0 or not double + single:
        raise BadInput(f"double and single: got {double} and {single}, expected blocks of either kind")
    sizes = replace(made, text=text_tokens)
    axes = axes_text(default_axes(sizes.head_dim) if rope_axes is None else rope_axes, sizes)
    frame = flux_frame(
        patch_size=patch_size, in_channels=in_channels, text_width=text_width, pooled_width=pooled_width, guidance=guidance,
        rope_axes=axes,
    )  # fmt: skip
    if words:
        frame += (("words", words), ("text_blocks", text_blocks), ("text_heads", text_heads))
        frame += (("vocabulary", vocabulary),) if vocabulary else ()
    blocks = (double_block(sizes),) * double + (single_block(sizes, mixer),) * single
    return ModelSpec("flux", sizes, frame, PREDICTION, blocks)


def flux_frame(
    *, patch_size: int, in_channels: int, text_width: int, pooled_width: int, guidance: bool, rope_axes: str
) -> tuple[tuple[str, int | str], ...]:
    """The options of a frame."""
    return (
        ("patch", patch_size), ("channels", in_channels), ("text_width", text_width), ("pooled_width", pooled_width),
        ("guidance", guidance), ("rope_axes", rope_axes),
    )  # fmt: skip


PREDICTION = Prediction("velocity", "noise", variance=False)
"""Rectified flow (arXiv 2209.03003): noise minus data, at the share of noise."""


def variant(name: str) -> ModelSpec:
    """Spec of a published model, "flux-schnell" or "flux-dev", at 1024 pixels. Raises `BadInput` on an unknown name."""
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected one of {VARIANTS}{did_you_mean(name, VARIANTS)}")
    guidance = name == "flux-dev"
    return flux_spec(
        input_size=INPUT_SIZE, hidden_size=WIDTH, num_heads=HEADS, double=DOUBLE, single=SINGLE, guidance=guidance,
        text_tokens=TEXT_TOKENS[guidance],
    )  # fmt: skip
