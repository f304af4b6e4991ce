"""The backbone of AuraFlows: what its frame makes of images, times and texts, and what it makes of the blocks' result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones.auraflow.frame import TIME_SCALE, Head, middle, side_of
from graftax.backbones.embedders import FREQUENCIES, FlatPatchEmbed, TimestepEmbed
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.backbones.times import check_times
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.model import all_known
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option, Prediction

OPTIONS = ("channels", "patch", "positions", "registers", "text_width")
"""Of the frame: all whole numbers from 1."""

OWN = ("num_heads", "input_size", "text_tokens")
"""Overrides that are no option of an operator."""


class AuraFlow:
    """The backbone: an image and a text stream, registers in front of the text, conditioned on a time."""

    fixed = ()
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not an AuraFlow's, or a joint block gives its text no answer."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        for name in OPTIONS:
            value = spec.option(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected an integer from 1")
        if side_of(positions := spec.option("positions")) ** 2 != positions:
            raise BadInput(f"ModelSpec.frame positions: got {positions}, expected a square number")
        if spec.sizes.text <= spec.option("registers") or spec.sizes.context or not spec.tokens:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, and text tokens beside the registers")
        if spec.prediction != (expected := Prediction("velocity", "noise", variance=False)):
            raise BadInput(f"ModelSpec.prediction: got {spec.prediction}, expected {expected}")
        _check_grid(spec, spec.sizes.grid, "ModelSpec.sizes.grid")
        for i, block in enumerate(spec.blocks):
            if block.kind == "aura_joint" and not block["attn"].option("text_out", True):
                raise BadInput(f"blocks[{i}].attn: {block['attn']}, expected text_out=True: the block needs both answers")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, patch, normal = spec.width, spec.option("patch"), nn.initializers.normal
        tokens = FlatPatchEmbed(d, patch, name="x_embedder")(jnp.zeros((1, *spec.image_shape)))
        module.param("pos_embed", normal(0.1), (1, spec.option("positions"), d), jnp.float32)
        module.param("registers", normal(0.02), (1, spec.option("registers"), d), jnp.float32)
        vec = _time_embed(d, name="t_embedder")(jnp.zeros(1))
        _text_embed(d, name="text_embedder")(jnp.zeros((1, 1, spec.option("text_width"))))
        Head(patch, spec.out_channels, spec.sizes.grid, name="final")(tokens, vec)

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Image tokens (b, n, d) of x (b, h, w, c), registers and text (b, m, d), and the conditioning vector (b, d)."""
        x = call(FlatPatchEmbed(spec.width, spec.option("patch"), dtype), params["x_embedder"], x.astype(jnp.float32))
        img = x.astype(jnp.float32) + middle(params["pos_embed"], spec.sizes.grid)  # (b, n, d)
        text = call(_text_embed(spec.width, dtype), params["text_embedder"], cond["text"]).astype(jnp.float32)
        registers = jnp.broadcast_to(params["registers"], (len(x), *params["registers"].shape[1:])).astype(jnp.float32)
        txt = jnp.concatenate([registers, text], axis=1)  # (b, m, d)
        vec = place(self.vec(spec, params, t), None, None)  # whole in between, as in a DiT
        state = {"img": place(img, *STREAM), "txt": place(txt, *STREAM)}
        return state, Context(place(vec, "batch", "width"))

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array) -> jax.Array:
        """The conditioning vector (b, d): the embedding of t (b,)."""
        return call(_time_embed(spec.width), params["t_embedder"], t)

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The velocity (b, h, w, c), noise minus data, of the image's tokens."""
        final = Head(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype)
        return place(call(final, params["final"], state["img"], context.vec), "batch", None, None, None)

    # --- Conditions ---------------------------------------------------------------------------------------------------

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where x is no image of whole patches or larger than the table of positions, or t or the text is
        missing, ill-typed, mis-shaped or out of range."""
        patch, channels = spec.option("patch"), spec.option("channels")
        if x.shape[3] != channels or x.shape[1] % patch or x.shape[2] % patch or not x.shape[1] * x.shape[2]:
            raise BadInput(f"x: shape {x.shape}, expected (b, h, w, {channels}), h and w multiples of the patch {patch}")
        _check_grid(spec, (x.shape[1] // patch, x.shape[2] // patch), "x")
        check_times(spec, t)
        if set(cond) != {"text"}:
            raise BadInput(f"conditions: got {sorted(cond)}, expected ['text'], padding multiplied to zero by its mask")
        text, width = cond["text"], spec.option("text_width")
        floats = jnp.issubdtype(text.dtype, jnp.floating)
        if text.ndim != 3 or text.shape[::2] != (len(x), width) or not text.shape[1] or not floats:
            raise BadInput(f"text: {text.dtype}{text.shape}, expected float embeddings ({len(x)}, m, {width}), m >= 1")
        if not all_known(text, jnp.isfinite):
            raise BadInput("text: holds NaN or infinite numbers, expected finite ones")

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """`text` (b, m, c) of a batch, multiplied by its `text_mask` (b, m) where it has one."""
        text = batch["text"]
        return {"text": text * batch["text_mask"][..., None].astype(text.dtype) if "text_mask" in batch else text}

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """There is none: what stands for no text is the encoded empty prompt."""
        raise BadInput(
            "null text: an AuraFlow brings none, expected null_cond (the empty prompt, encoded) or class_dropout=0"
        )

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """A text of zeros."""
        return {"text": jnp.zeros((count, spec.sizes.text - spec.option("registers"), spec.option("text_width")))}

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """How diffusers' pipeline draws: 50 steps of Euler's method at a shift of 1.73, guidance 3.5 on all channels."""
        return {
            "sampler": "euler", "spacing": "sd3", "shift": 1.73, "steps": 50, "cfg_scale": 3.5, "cfg_channels": None
        }  # fmt: skip

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """`count` conditioning vectors (s, d), of times evenly spread."""
        return self.vec(spec, params, (jnp.arange(count) + 0.5) / count)

    # --- Sizes --------------------------------------------------------------------------------------------------------

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, registers, text = spec.width, spec.tokens, spec.option("registers"), spec.option("text_width")
        numbers, out = (spec.option("patch") ** 2 * channels for channels in (spec.option("channels"), spec.out_channels))
        trained = numbers * d + d + (spec.option("positions") + registers) * d + text * d
        trained += FREQUENCIES * d + d + d * d + d + 2 * d * d + d * out
        embed = 2 * n * d * numbers + 2 * d * (FREQUENCIES + d) + 2 * (spec.sizes.text - registers) * d * text
        return FrameCost(trained, 0, embed, 2 * n * d * out + 4 * d * d)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` with what the user adds to a file. Raises `BadInput` on what is unknown or contradicts the file."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        said = {"text_tokens": spec.sizes.text - spec.option("registers"), "input_size": spec.image_shape[0]}
        for name, value in said.items():
            if overrides.get(name, value) != value:
                raise BadInput(f"override {name}={overrides[name]!r}: the file says {value}")
        return spec


def _time_embed(width: int, name: str | None = None) -> TimestepEmbed:
    """Angles are rounded as 1000 (t frequency), as in diffusers; the original code rounds t (1000 frequency)."""
    return TimestepEmbed(width, scale=TIME_SCALE, name=name)


def _text_embed(width: int, dtype: DTypeLike | None = None, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, use_bias=False, dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)


def _check_grid(spec: ModelSpec, grid: tuple[int, int], where: str) -> None:
    """Raise `BadInput` where a grid is larger than the table of positions."""
    side = side_of(spec.option("positions"))
    if max(grid) > side:
        raise BadInput(f"{where}: {grid[0]}x{grid[1]} tokens, expected at most {side}x{side}, the table of positions")


BACKBONE = AuraFlow()
