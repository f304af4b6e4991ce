"""The backbone of PixArts: what its frame makes of images, times and texts, and what it makes of the blocks' result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.backbones import words
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, PatchEmbed, TimestepEmbed, placed_sinusoids
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.backbones.pixart.frame import MICRO, PARTS, SizeEmbed, declare_text, size_params, text_cost, text_of
from graftax.backbones.times import STEPS, check_times
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.model import all_known
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

COUNTS = {"base": 1, "channels": 1, "null_tokens": 0, "patch": 1, "text_width": 1}
"""Whole numbers among the frame's options, and the least that each may be."""

OPTIONS = tuple(sorted({*COUNTS, *words.OPTIONS, words.VOCABULARY, "interpolation", "micro"}))
OWN = ("num_heads", "interpolation", "text_tokens", "input_size", words.VOCABULARY)
"""Overrides that are no option of an operator."""

ASPECTS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Height over width of the sizes that stand for all where a model is conditioned on them."""


class PixArt:
    """The backbone: one image stream beside a text that its blocks look at, conditioned on a time, and some on the original
    image's size."""

    fixed = ("null_caption",)
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a PixArt."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        for name, least in (COUNTS | words.OPTIONS if words.reads_words(spec) else COUNTS).items():
            value = spec.option(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected an integer from {least}")
        interpolation, micro = spec.option("interpolation"), spec.option("micro")
        if not isinstance(interpolation, float) or interpolation <= 0:
            raise BadInput(f"ModelSpec.frame interpolation: got {interpolation!r}, expected a positive number")
        if not isinstance(micro, bool) or (micro and spec.width % PARTS):
            raise BadInput(f"ModelSpec.frame micro: got {micro!r}, expected true or false, and true at widths 3 d alone")
        words.check_vocabulary(spec)
        if spec.sizes.text or not spec.sizes.context or not spec.tokens:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, a context and no text stream")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`; what blocks share is created with them."""
        d, patch = spec.width, spec.option("patch")
        tokens = PatchEmbed(d, patch, name="x_embedder")(jnp.zeros((1, *spec.image_shape)))
        c = TimestepEmbed(d, name="t_embedder")(jnp.zeros(1))
        for name, numbers in MICRO.items() if spec.option("micro") else ():
            SizeEmbed(d, name=f"{name}_embedder")(jnp.zeros((1, numbers)))
        declare_text(module, spec)
        FinalLayer(patch, spec.out_channels, spec.sizes.grid, table=True, name="final")(tokens, c)

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c); the conditioning vector (b, d) and the text (b, m, d)."""
        x = call(PatchEmbed(spec.width, spec.option("patch"), dtype), params["x_embedder"], x.astype(jnp.float32))
        x = x.astype(jnp.float32) + self.positions(spec)  # (b, n, d)
        vec = place(self.vec(spec, params, t, cond), None, None)  # whole in between, as in a DiT
        text, mask = text_of(spec, params, cond, dtype)
        context = Context(place(vec, "batch", "width"), text=place(text, "batch", None, "width"), text_mask=mask)
        return {"img": place(x, *STREAM)}, context

    def positions(self, spec: ModelSpec) -> jax.Array:
        """Positions (1, n, d) of the tokens on the spec's grid, as in `sinusoidal_positions`, but rows and columns
        stretched onto a square of side `base`, then divided by `interpolation` (PixArt-Sigma, arXiv 2403.04692, 3.2).
        """
        base, interpolation = spec.option("base"), spec.option("interpolation")
        # Rounded to float32 on the way, as those who trained with such places did.
        rows, columns = (np.arange(side, dtype=np.float32) / (side / base) / interpolation for side in spec.sizes.grid)
        return placed_sinusoids(rows, columns, spec.width)

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array, cond: Cond) -> jax.Array:
        """The conditioning vector (b, d): the embedding of t (b,), plus those of the image's size side by side."""
        c = call(TimestepEmbed(spec.width), params["t_embedder"], t)
        if not spec.option("micro"):
            return c
        if missing := [name for name in MICRO if name not in cond]:
            raise BadInput(f"conditions: got {sorted(cond)}, expected {missing[0]} too, which this model was trained with")
        sizes = [call(SizeEmbed(spec.width), params[f"{name}_embedder"], cond[name]) for name in MICRO]
        return c + jnp.concatenate(sizes, axis=-1)

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, out_channels): predicted noise, then the variance channels."""
        final = FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype, table=True)
        return place(call(final, params["final"], state["img"], context.vec), "batch", None, None, None)

    # --- Conditions ---------------------------------------------------------------------------------------------------

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where x is no image of whole patches, or t or a condition is missing, unknown, ill-typed,
        mis-shaped or out of range."""
        patch, channels = spec.option("patch"), spec.option("channels")
        if x.shape[3] != channels or x.shape[1] % patch or x.shape[2] % patch or not x.shape[1] * x.shape[2]:
            raise BadInput(f"x: shape {x.shape}, expected (b, h, w, {channels}), h and w multiples of the patch {patch}")
        check_times(spec, t)
        needed = {"text", *(MICRO if spec.option("micro") else ())}
        masked = () if words.reads_words(spec) else ("text_mask",)
        if not needed <= set(cond) <= {*needed, *masked}:
            also = ", and text_mask where text is padded" if masked else ""
            raise BadInput(f"conditions: got {sorted(cond)}, expected {sorted(needed)}{also}")
        count, text, width = len(x), cond["text"], spec.option("text_width")
        if words.reads_words(spec):
            words.check(spec, count, text)
        elif text.ndim != 3 or text.shape[::2] != (count, width) or not text.shape[1] or not _floats(text):
            raise BadInput(f"text: {text.dtype}{text.shape}, expected float embeddings ({count}, m, {width}), m >= 1")
        for name in needed - {"text"}:
            if cond[name].shape != (count, MICRO[name]):
                raise BadInput(f"{name}: shape {cond[name].shape}, expected {(count, MICRO[name])}")
        _check_mask(cond.get("text_mask"), text.shape[:2])
        if broken := [name for name in needed if not all_known(cond[name], jnp.isfinite)]:
            raise BadInput(f"{broken[0]}: holds NaN or infinite numbers, expected finite ones")

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """`text` (b, m, c) of a batch and, where it has them, `text_mask` (b, m) and the image's size."""
        return {name: batch[name] for name in ("text", "text_mask", *MICRO) if name in batch or name == "text"}

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """The learned null caption for every image, all else as it is: PixArt drops its captions so in training. It counts
        as many real tokens as the caption that it replaces. Of words it is the empty caption."""
        count, tokens = spec.option("null_tokens"), cond["text"].shape[1]
        if words.reads_words(spec):
            return {**cond, "text": words.empty(*cond["text"].shape).astype(cond["text"].dtype)}
        if not count:
            raise BadInput("null caption: this model's file brings none, expected null_cond, or in training class_dropout=0")
        if tokens > count:
            raise BadInput(f"text: {tokens} tokens, expected at most the {count} of the null caption")
        null = params["null_caption"][:tokens].astype(cond["text"].dtype)
        return {**cond, "text": jnp.broadcast_to(null, cond["text"].shape)}

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """A text of zeros, all tokens real, and an image of the model's own size."""
        micro = _sizes(spec, jnp.ones(count)) if spec.option("micro") else {}
        shape = (count, spec.sizes.context)
        if words.reads_words(spec):
            return {"text": jnp.full(shape, words.END), **micro}
        return {"text": jnp.zeros((*shape, spec.option("text_width"))), "text_mask": jnp.ones(shape, jnp.int32), **micro}

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """How its authors draw images: 20 steps of DPM-Solver++ 2M, guidance 4.5 on all channels."""
        return {"sampler": "dpmpp_2m", "steps": 20, "cfg_scale": 4.5, "cfg_channels": None}

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d): times evenly spread, at each of them a few sizes in turn."""
        aspects = jnp.asarray(ASPECTS if spec.option("micro") else (1.0,))
        times = -(-count // len(aspects))
        t, aspect = jnp.meshgrid((jnp.arange(times) + 0.5) / times * STEPS, aspects, indexing="ij")
        return self.vec(spec, params, t.reshape(-1), _sizes(spec, aspect.reshape(-1)))

    # --- Sizes --------------------------------------------------------------------------------------------------------

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, patch = spec.width, spec.tokens, spec.option("patch")
        numbers, out = patch**2 * spec.option("channels"), patch**2 * spec.out_channels
        text, text_flops = text_cost(spec)
        micro, part = bool(spec.option("micro")), d // PARTS
        trained = numbers * d + d + FREQUENCIES * d + d + d * d + d + text + 2 * d + d * out + out
        trained += micro * len(MICRO) * size_params(d)
        embed = 2 * n * d * numbers + 2 * d * (FREQUENCIES + d) + text_flops
        embed += micro * PARTS * 2 * part * (FREQUENCIES + part)
        return FrameCost(trained, spec.option("null_tokens") * spec.option("text_width"), embed, 2 * n * d * out)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` with what the user adds to a file. Raises `BadInput` on what is unknown or contradicts the file."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        said = {"interpolation": spec.option("interpolation"), "text_tokens": spec.sizes.context}
        for name, value in {**said, "input_size": spec.image_shape[0]}.items():
            if overrides.get(name, value) != value:
                raise BadInput(f"override {name}={overrides[name]!r}: the file says {value}")
        return words.with_vocabulary(spec, overrides.get(words.VOCABULARY))


def _floats(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _check_mask(mask: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Raise `BadInput` unless `mask` is None or zeros and ones of that shape."""
    if mask is None:
        return
    if mask.shape != shape:
        raise BadInput(f"text_mask: shape {mask.shape}, expected {shape}, one number for each token of text")
    if not all_known(mask, lambda mask: (mask == 0) | (mask == 1)):
        raise BadInput("text_mask: expected ones for real tokens and zeros for padding alone")


def _sizes(spec: ModelSpec, aspect: jax.Array) -> Cond:
    """Sizes (b, ..) in pixels, 8 to a latent's, of images with this height over width (b,) and the model's own area."""
    h, w, _ = spec.image_shape
    side = 8 * (h * w) ** 0.5
    return {
        "resolution": side * jnp.stack([aspect**0.5, aspect**-0.5], axis=-1),
        "aspect_ratio": aspect[:, None],
    }


BACKBONE = PixArt()
