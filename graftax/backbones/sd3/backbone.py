"""The backbone of Stable Diffusion 3: what its frame makes of images, times and texts, and of the blocks' result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.backbones.embedders import FinalLayer, PatchEmbed
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.backbones.sd3 import frame
from graftax.backbones.times import check_times
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.model import all_known
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

OPTIONS = ("channels", "patch", "pooled_width", "positions", "text_width")
"""The frame's options, whole numbers from 1: beside patch and channels the widths of the pooled text and of a text's tokens,
and the side of the table of positions."""

OWN = ("num_heads", "text_tokens", "input_size")
"""Overrides that are no option of an operator."""

CONDITIONS = ("pooled", "text")


class SD3:
    """The backbone: an image beside a text that its blocks read and write, conditioned on a time and the pooled text."""

    fixed = ("pos_embed",)
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of an SD3, or the streams are not its two."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        for name in OPTIONS:
            value = spec.option(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected an integer from 1")
        if spec.sizes.context or not spec.sizes.text or not spec.tokens:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, a text stream and no context")
        if spec.width % 4:
            raise BadInput(f"ModelSpec.sizes.width: {spec.width}, expected a multiple of 4, as positions have four parts")
        _check_positions(spec, spec.sizes.grid)

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, patch = spec.width, spec.option("patch")
        tokens = PatchEmbed(d, patch, name="x_embedder")(jnp.zeros((1, *spec.image_shape)))
        frame.declare(module, spec)
        FinalLayer(patch, spec.out_channels, spec.sizes.grid, name="final")(tokens, jnp.zeros((1, d)))

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c), those of the text (b, m, d), and the conditioning vector (b, d)."""
        x = call(PatchEmbed(spec.width, spec.option("patch"), dtype), params["x_embedder"], x.astype(jnp.float32))
        x = x.astype(jnp.float32) + frame.positions_of(spec, params)  # (b, n, d)
        vec = place(frame.vec_of(spec, params, t, cond["pooled"]), None, None)  # whole in between, as in a DiT
        state = {"txt": frame.text_of(spec, params, cond, dtype), "img": x}
        return {name: place(stream, *STREAM) for name, stream in state.items()}, Context(place(vec, "batch", "width"))

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, c): the velocity, noise minus data."""
        final = FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype)
        return place(call(final, params["final"], state["img"], context.vec), "batch", None, None, None)

    # --- Conditions ---------------------------------------------------------------------------------------------------

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where x is no image of whole patches or larger than the table of positions, or t or a condition
        is missing, unknown, ill-typed, mis-shaped or out of range."""
        patch, channels = spec.option("patch"), spec.option("channels")
        if x.shape[3] != channels or x.shape[1] % patch or x.shape[2] % patch or not x.shape[1] * x.shape[2]:
            raise BadInput(f"x: shape {x.shape}, expected (b, h, w, {channels}), h and w multiples of the patch {patch}")
        _check_positions(spec, (x.shape[1] // patch, x.shape[2] // patch))
        check_times(spec, t)
        if set(cond) != {*CONDITIONS}:
            raise BadInput(f"conditions: got {sorted(cond)}, expected {list(CONDITIONS)}")
        count, text, pooled = len(x), cond["text"], cond["pooled"]
        width, pooled_width = spec.option("text_width"), spec.option("pooled_width")
        if text.ndim != 3 or text.shape[::2] != (count, width) or not text.shape[1] or not _floats(text):
            raise BadInput(f"text: {text.dtype}{text.shape}, expected float embeddings ({count}, m, {width}), m >= 1")
        if pooled.shape != (count, pooled_width) or not _floats(pooled):
            raise BadInput(f"pooled: {pooled.dtype}{pooled.shape}, expected float embeddings ({count}, {pooled_width})")
        if broken := [name for name in CONDITIONS if not all_known(cond[name], jnp.isfinite)]:
            raise BadInput(f"{broken[0]}: holds NaN or infinite numbers, expected finite ones")

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """`text` (b, m, c) and `pooled` (b, p) of a batch."""
        return {name: batch[name] for name in CONDITIONS}

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """None: the empty prompt of the text encoders is SD3's unconditional text, and no file of the model holds that."""
        raise BadInput(
            "null text: an SD3 brings none, expected null_cond, the empty prompt as its text encoders give it, or in "
            "training class_dropout=0"
        )

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """A text of zeros."""
        return {
            "text": jnp.zeros((count, spec.sizes.text, spec.option("text_width"))),
            "pooled": jnp.zeros((count, spec.option("pooled_width"))),
        }

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """How diffusers' pipeline draws images: 28 steps of Euler's method at a shift of 3, guidance 7 on all channels."""
        return {
            "sampler": "euler", "spacing": "sd3", "shift": 3.0, "steps": 28, "cfg_scale": 7.0, "cfg_channels": None
        }  # fmt: skip

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d): times evenly spread, each with a pooled text of its own, standard
        normal numbers for want of texts."""
        pooled = np.random.default_rng(0).standard_normal((count, spec.option("pooled_width")), np.float32)
        return frame.vec_of(spec, params, (jnp.arange(count) + 0.5) / count * spec.prediction.scale, jnp.asarray(pooled))

    # --- Sizes --------------------------------------------------------------------------------------------------------

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, patch = spec.width, spec.tokens, spec.option("patch")
        numbers, out = patch**2 * spec.option("channels"), patch**2 * spec.out_channels
        conditions, flops = frame.cost(spec)
        trained = numbers * d + d + conditions + 2 * d * d + 2 * d + d * out + out
        embed, head = 2 * n * d * numbers + flops, 2 * n * d * out + 4 * d * d
        return FrameCost(trained, spec.option("positions") ** 2 * d, embed, head)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` as it is. Raises `BadInput` on what is unknown or contradicts the file."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        for name, value in {"text_tokens": spec.sizes.text, "input_size": spec.image_shape[0]}.items():
            if overrides.get(name, value) != value:
                raise BadInput(f"override {name}={overrides[name]!r}: the file says {value}")
        return spec


def _floats(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _check_positions(spec: ModelSpec, grid: tuple[int, int]) -> None:
    """Raise `BadInput` where a grid of tokens is larger than the table of positions."""
    if max(grid) > (side := spec.option("positions")):
        raise BadInput(f"image of {grid[0]}x{grid[1]} tokens: expected at most the {side}x{side} that have positions")


BACKBONE = SD3()
