"""The backbone of Flux: what its frame makes of images, times and texts, and what it makes of the blocks' result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.backbones import words
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, packed
from graftax.backbones.flux.frame import axes_text, declare_vec, needed, rope, vec_of
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.backbones.times import check_times, resolution_shift
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.model import all_known
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

COUNTS = {"channels": 1, "patch": 1, "pooled_width": 0, "text_width": 1}
"""Whole numbers among the frame's options, and the least that each may be; 0: a model that takes no pooled text."""

OPTIONS = tuple(sorted({*COUNTS, *words.OPTIONS, words.VOCABULARY, "guidance", "rope_axes"}))
OWN = ("num_heads", "rope_axes", "text_tokens", "input_size", words.VOCABULARY)
"""Overrides that are no option of an operator."""

GUIDANCES = (1.0, 2.0, 3.5, 5.0, 7.0)
"""Guidances that stand for all in a model that is conditioned on them; 3.5 is the authors' own."""

USUAL = 3.5


class Flux:
    """The backbone: image and text in two streams, then in one, conditioned on a time, a pooled text, and some on a
    guidance."""

    fixed = ()
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a Flux."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        for name, least in (COUNTS | words.OPTIONS if words.reads_words(spec) else COUNTS).items():
            value = spec.option(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected an integer from {least}")
        if not isinstance(spec.option("guidance"), bool):
            raise BadInput(f"ModelSpec.frame guidance: got {spec.option('guidance')!r}, expected true or false")
        axes_text(spec.option("rope_axes"), spec.sizes)
        words.check_vocabulary(spec)
        if words.reads_words(spec) and spec.option("pooled_width"):
            raise BadInput(f"ModelSpec.frame pooled_width: got {spec.option('pooled_width')}, expected 0 beside words")
        if spec.sizes.context or not spec.sizes.text or not spec.tokens:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, a text stream and no context")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d = spec.width
        tokens = _linear(d, name="x_embedder")(packed(jnp.zeros((1, *spec.image_shape)), spec.option("patch")))
        if words.reads_words(spec):
            words.declare(module, spec)
        _linear(d, name="text_embedder")(jnp.zeros((1, 1, spec.option("text_width"))))
        declare_vec(module, spec)
        self._final(spec, None, name="final")(tokens, jnp.zeros((1, d)))

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c) and (b, m, d) of the text; the conditioning vector (b, d) and the
        rotary positions."""
        img = call(_linear(spec.width, dtype), params["x_embedder"], packed(x.astype(jnp.float32), spec.option("patch")))
        txt = call(_linear(spec.width, dtype), params["text_embedder"], _text(spec, params, cond["text"]))
        vec = place(self.vec(spec, params, t, cond), None, None)  # whole in between, as in a DiT
        state = {"txt": place(txt.astype(jnp.float32), *STREAM), "img": place(img.astype(jnp.float32), *STREAM)}
        return state, Context(place(vec, "batch", "width"), rope=rope(spec, txt.shape[1]))

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array, cond: Cond) -> jax.Array:
        """The conditioning vector (b, d), as `vec_of`."""
        return vec_of(spec, params, t, cond)

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The velocity (b, h, w, c) of the image's tokens."""
        return place(call(self._final(spec, dtype), params["final"], state["img"], context.vec), "batch", None, None, None)

    def _final(self, spec: ModelSpec, dtype: DTypeLike | None, name: str | None = None) -> FinalLayer:
        return FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype, packed=True, name=name)

    # --- Conditions ---------------------------------------------------------------------------------------------------

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where x is no image of whole patches, or t or a condition is missing, unknown, ill-typed,
        mis-shaped or out of range."""
        patch, channels = spec.option("patch"), spec.option("channels")
        if x.shape[3] != channels or x.shape[1] % patch or x.shape[2] % patch or not x.shape[1] * x.shape[2]:
            raise BadInput(f"x: shape {x.shape}, expected (b, h, w, {channels}), h and w multiples of the patch {patch}")
        check_times(spec, t)
        names = needed(spec)
        if set(cond) != {*names}:
            raise BadInput(f"conditions: got {sorted(cond)}, expected {sorted(names)}{_why(spec, cond)}")
        count, text, width = len(x), cond["text"], spec.option("text_width")
        if words.reads_words(spec):
            words.check(spec, count, text)
        elif text.ndim != 3 or text.shape[::2] != (count, width) or not text.shape[1] or not _floats(text):
            raise BadInput(f"text: {text.dtype}{text.shape}, expected float embeddings ({count}, m, {width}), m >= 1")
        for name, shape in {"pooled": (count, spec.option("pooled_width")), "guidance": (count,)}.items():
            if name in names and (cond[name].shape != shape or not _floats(cond[name])):
                raise BadInput(f"{name}: {cond[name].dtype}{cond[name].shape}, expected floats {shape}")
        for name in sorted(names):
            if not all_known(cond[name], jnp.isfinite):
                raise BadInput(f"{name}: holds NaN or infinite numbers, expected finite ones")

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """`text` (b, m, c) of a batch and, where it has them, `pooled` (b, c) and `guidance` (b,)."""
        return {name: batch[name] for name in ("text", "pooled", "guidance") if name in batch or name == "text"}

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """The empty caption, of a model that reads words. Raises `BadInput` for others: Flux is distilled from a guided
        model."""
        if words.reads_words(spec):
            return {**cond, "text": words.empty(*cond["text"].shape).astype(cond["text"].dtype)}
        how = "dev's guidance is a condition, guidance=3.5" if spec.option("guidance") else "this one draws without guidance"
        raise BadInput(
            f"unconditional twin: Flux has none, {how}; expected cfg_scale=1, null_cond, or in training class_dropout=0"
        )

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """A text of zeros, or of empty words, and the authors' own guidance."""
        shape = (count, spec.sizes.text)
        text = jnp.full(shape, words.END) if words.reads_words(spec) else jnp.zeros((*shape, spec.option("text_width")))
        pooled = jnp.zeros((count, spec.option("pooled_width")))
        found = {"text": text, "pooled": pooled, "guidance": jnp.full(count, USUAL)}
        return {name: found[name] for name in needed(spec)}

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """How the authors draw images, by Euler's method and without classifier-free guidance: schnell in 4 steps, dev in 28
        with a shift that grows with the image. Models of words are nobody's distillates: 28 steps, guidance 3.5."""
        euler = {"sampler": "euler", "cfg_scale": 1.0, "cfg_channels": None}
        if words.reads_words(spec):
            return {**euler, "steps": 28, "cfg_scale": 3.5}
        if not spec.option("guidance"):
            return {**euler, "steps": 4}
        return {**euler, "steps": 28, "shift": resolution_shift(spec.sizes.image)}

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """`count` conditioning vectors (s, d): times evenly spread, `GUIDANCES` in turn, and pooled texts of independent
        numbers from N(0, 1), about as large as CLIP's."""
        pooled = np.random.default_rng(0).standard_normal((count, spec.option("pooled_width")), np.float32)
        cond = {"pooled": jnp.asarray(pooled), "guidance": jnp.resize(jnp.asarray(GUIDANCES), (count,))}
        return self.vec(spec, params, (jnp.arange(count) + 0.5) / count, cond)

    # --- Sizes --------------------------------------------------------------------------------------------------------

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, m, numbers = spec.width, spec.tokens, spec.sizes.text, spec.option("patch") ** 2 * spec.option("channels")
        text, pooled, sinusoids = spec.option("text_width"), spec.option("pooled_width"), 1 + spec.option("guidance")
        matrices = sinusoids * d * (FREQUENCIES + d) + (pooled > 0) * d * (pooled + d)
        trained = d * (numbers + text) + 2 * d + matrices + 2 * (sinusoids + (pooled > 0)) * d
        trained += 2 * d * d + 2 * d + d * numbers + numbers
        own, own_flops = words.cost(spec) if words.reads_words(spec) else (0, 0)
        embed = 2 * d * (n * numbers + m * text) + 2 * matrices + own_flops
        return FrameCost(trained + own, 0, embed, 2 * n * d * numbers + 4 * d * d)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec`: its file says all by now. Raises `BadInput` on what is unknown or contradicts it."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        said = {"rope_axes": spec.option("rope_axes"), "text_tokens": spec.sizes.text, "input_size": spec.image_shape[0]}
        for name, value in said.items():
            given = overrides.get(name, value)
            if (axes_text(given, spec.sizes) if name == "rope_axes" else given) != value:
                raise BadInput(f"override {name}={given!r}: the file says {value}")
        return words.with_vocabulary(spec, overrides.get(words.VOCABULARY))


def _text(spec: ModelSpec, params: Params, text: jax.Array) -> jax.Array:
    """Embeddings (b, m, c) of a text as they are given, or of its words (b, m), zeros where it is filled up."""
    if not words.reads_words(spec):
        return text
    embedded, mask = words.embedded(spec, params, text)
    return embedded * mask[..., None]


def _floats(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _linear(width: int, dtype: DTypeLike | None = None, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


def _why(spec: ModelSpec, cond: Cond) -> str:
    """What is to be said of guidance, and of a mask, to those who gave or missed one."""
    if "text_mask" in cond:
        return ": Flux reads padding too, without a mask"
    if "guidance" in cond and not spec.option("guidance"):
        return ": this model (schnell) knows no guidance"
    return ", guidance (3.5) a number for each image" if spec.option("guidance") and "guidance" not in cond else ""


BACKBONE = Flux()
