"""A toy backbone for tests of what must not care which one it has: two streams, two kinds of blocks, a joint attention.

Importing this module makes "toy" known. An image's tokens run beside a few words of its class: in `toy_joint` blocks the two
streams meet in one attention and have channel mixers of their own (as in SD3, arXiv 2403.03206, Figure 2), in `toy_single`
blocks they are one sequence, attention and channel mixer side by side (as in Flux's single blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from graftax import blocks, ops
from graftax.backbones.classes import ClassConditional
from graftax.backbones.dit.frame import LabelEmbed
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, PatchEmbed, TimestepEmbed, sinusoidal_positions
from graftax.blocks import BlockKind, Context, Run, Slot, State, Tap
from graftax.blocks.base import modulate, vectors
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.layout import Layout
from graftax.models.prediction import time_at
from graftax.ops import Axes, Cost, Operator
from graftax.ops.attention import full_attention
from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Params, call
from graftax.ops.norms import layer_norm
from graftax.spec import BACKBONES, ModelSpec, OpSpec, Option, Prediction, Sizes, op

NAME = "toy"
OPTIONS = ("channels", "classes", "patch")


class _Stream(nn.Module):
    """One stream's projections in a joint attention.

    Attributes:
        sizes: of the tokens.
        dtype: matmul type.
    """

    sizes: Sizes
    dtype: DTypeLike | None

    def setup(self) -> None:
        inner = self.sizes.heads * self.sizes.head_dim
        self.qkv = nn.Dense(3 * inner, dtype=self.dtype)
        self.proj = nn.Dense(self.sizes.width, dtype=self.dtype)

    def heads_of(self, x: jax.Array) -> jax.Array:
        """(b, n, d) -> queries, keys, values (b, n, 3, h, k)."""
        return self.qkv(x).reshape(*x.shape[:2], 3, self.sizes.heads, self.sizes.head_dim)

    def out(self, mixed: jax.Array) -> jax.Array:
        """(b, n, h, k) -> (b, n, d)."""
        return self.proj(mixed.reshape(*mixed.shape[:2], -1))


class ToyJointMHA(Operator):
    """Attention of text and image together, each with projections of its own: {"txt": (b, m, d), "img": (b, n, d)} -> the
    same. Queries are scaled by 1 + W silu(vec), one number for a head, so that it reads the context as some operators do.
    """

    kind = "toy_joint_mha"
    role = "joint"
    reads = ("vec",)
    readout = ""
    axes: ClassVar[Axes] = {"qkv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        d = self.width
        streams = {"txt": jnp.zeros((1, self.sizes.text, d)), "img": jnp.zeros((1, self.sizes.image, d))}
        return (streams,), {"vec": jnp.zeros((1, d))}

    @nn.compact
    def __call__(self, streams: State, *, vec: jax.Array) -> State:
        parts = {name: _Stream(self.sizes, self.dtype, name=name) for name in ("txt", "img")}
        gain = 1 + nn.Dense(self.sizes.heads, dtype=self.dtype, name="gain")(nn.silu(vec))  # (b, h)
        m = streams["txt"].shape[1]
        both = jnp.concatenate([parts[name].heads_of(streams[name]) for name in ("txt", "img")], axis=1)
        q, k, v = both[:, :, 0] * gain[:, None, :, None], both[:, :, 1], both[:, :, 2]  # (b, m + n, h, k) each
        mixed = full_attention(q, k, v)
        return {"txt": parts["txt"].out(mixed[:, :m]), "img": parts["img"].out(mixed[:, m:])}

    def cost(self) -> Cost:
        d, h, tokens = self.width, self.sizes.heads, self.tokens
        inner = h * self.sizes.head_dim
        stream = 4 * d * inner + 3 * inner + d
        return Cost(2 * stream + d * h + h, tokens**2 * (4 * inner + 2 * h), 8 * tokens * d * inner + 2 * d * h)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        return weights if isinstance(donor, ToyJointMHA) else None


class ToyJoint(BlockKind):
    """Each stream: x += gate * attention of both, then x += gate * mlp, of normalised and modulated tokens."""

    kind = "toy_joint"
    slots = (
        Slot("img/adaln", "modulation", parts=6), Slot("txt/adaln", "modulation", ("txt",), parts=6),
        Slot("attn", "joint", ("txt", "img")), Slot("img/mlp", "channel"), Slot("txt/mlp", "channel", ("txt",)),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        modulations = {name: vectors(run[f"{name}/adaln"](), 6) for name in state}
        u = {name: modulate(layer_norm(x), *modulations[name][:2]) for name, x in state.items()}
        y: Any = tap("attn/out", run["attn"](tap("attn/in", u)))
        out: State = {}
        for name, x in state.items():
            _, _, gate, shift, scale, gate_mlp = modulations[name]
            x = x + gate * y[name].astype(jnp.float32)
            v = tap(f"{name}/mlp/in", modulate(layer_norm(x), shift, scale))
            out[name] = x + gate_mlp * tap(f"{name}/mlp/out", run[f"{name}/mlp"](v).astype(jnp.float32))
        return out


class ToySingle(BlockKind):
    """x += gate * (mixer(u) + mlp(u)) on text and image as one sequence, u normalised and modulated."""

    kind = "toy_single"
    slots = (
        Slot("adaln", "modulation", ("txt", "img"), parts=3), Slot("mixer", "mixer", ("txt", "img")),
        Slot("mlp", "channel", ("txt", "img")),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        x, m = jnp.concatenate([state["txt"], state["img"]], axis=1), state["txt"].shape[1]  # (b, m + n, d)
        shift, scale, gate = vectors(run["adaln"](), 3)
        u = modulate(layer_norm(x), shift, scale)
        mixed = tap("mixer/out", run["mixer"](tap("mixer/in", u)).astype(jnp.float32))
        x = x + gate * (mixed + tap("mlp/out", run["mlp"](tap("mlp/in", u)).astype(jnp.float32)))
        return {"txt": x[:, :m], "img": x[:, m:]}


class Toy(ClassConditional):
    """The backbone: patches of an image, words of its class, and a vector of time and class."""

    fixed = ("pos_embed",)
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a toy, or there is no text."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        if spec.classes < 1 or not spec.sizes.text or not spec.tokens:
            raise BadInput(f"ModelSpec: {spec.sizes} and {spec.classes} classes, expected image, text and a class at least")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, patch = spec.width, spec.option("patch")
        tokens = PatchEmbed(d, patch, name="x_embedder")(jnp.zeros((1, *spec.image_shape)))
        module.param("pos_embed", lambda _: jnp.asarray(sinusoidal_positions(d, spec.sizes.grid)))
        vec = TimestepEmbed(d, name="t_embedder")(jnp.zeros(1))
        LabelEmbed(spec.classes, d, name="y_embedder")(jnp.zeros(1, jnp.int32))
        LabelEmbed(spec.classes, spec.sizes.text * d, name="words")(jnp.zeros(1, jnp.int32))
        FinalLayer(patch, spec.out_channels, spec.sizes.grid, name="final")(tokens, vec)

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Image tokens (b, n, d), words (b, m, d), and the conditioning vector (b, d)."""
        img = call(PatchEmbed(spec.width, spec.option("patch"), dtype), params["x_embedder"], x.astype(jnp.float32))
        words = call(LabelEmbed(spec.classes, spec.sizes.text * spec.width), params["words"], cond["y"])
        state = {
            "txt": words.reshape(len(x), spec.sizes.text, spec.width),
            "img": img.astype(jnp.float32) + params["pos_embed"],
        }
        return state, Context(self.vec(spec, params, t, cond["y"]))

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array, y: jax.Array) -> jax.Array:
        """The conditioning vector (b, d): embeddings of t (b,) and of y (b,), added."""
        c = call(TimestepEmbed(spec.width), params["t_embedder"], t)
        return c + call(LabelEmbed(spec.classes, spec.width), params["y_embedder"], y)

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, out_channels) of the image's tokens."""
        final = FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype)
        return call(final, params["final"], state["img"], context.vec)

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d): every class at times evenly spread."""
        times = -(-count // (spec.classes + 1))
        t, y = jnp.meshgrid(
            time_at(spec.prediction.network, (jnp.arange(times) + 0.5) / times), jnp.arange(spec.classes + 1), indexing="ij"
        )
        return self.vec(spec, params, t.reshape(-1), y.reshape(-1))

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, m = spec.width, spec.tokens, spec.sizes.text
        numbers, out = (spec.option("patch") ** 2 * channels for channels in (spec.option("channels"), spec.out_channels))
        trained = numbers * d + d + FREQUENCIES * d + d + d * d + d + (spec.classes + 1) * (1 + m) * d
        trained += 2 * d * d + 2 * d + d * out + out
        embed = 2 * n * d * numbers + 2 * d * (FREQUENCIES + d)
        return FrameCost(trained, n * d, embed, 2 * n * d * out + 4 * d * d)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec`: a toy's file says all. Raises `BadInput` on any override."""
        if overrides:
            raise BadInput(f"override {min(overrides)!r}: a toy takes none")
        return spec


def toy_spec(
    joint: int = 3, single: int = 4, *, input_size: int = 8, width: int = 16, heads: int = 2, text: int = 5,
    classes: int = 10,
) -> ModelSpec:  # fmt: skip
    """A toy of `joint` blocks of two streams, then `single` blocks of one, on images of side `input_size` with 4 channels, 2
    pixels to a token's side, beside `text` words. Raises `BadInput` on sizes that do not go together."""
    if width % heads or input_size % 2:
        raise BadInput(f"toy: width {width}, heads {heads}, input_size {input_size}, expected a multiple of heads, and of 2")
    sizes = Sizes(width, heads, width // heads, (input_size // 2, input_size // 2), text)
    streams: dict[str, OpSpec] = {}
    for name in ("img", "txt"):
        streams |= {f"{name}/adaln": op("adaln"), f"{name}/mlp": op("mlp", ratio=2.0)}
    first = blocks.resolve("toy_joint", sizes, {**streams, "attn": op("toy_joint_mha")})
    second = blocks.resolve("toy_single", sizes, {"adaln": op("adaln"), "mixer": op("mha"), "mlp": op("mlp", ratio=2.0)})
    frame = (("patch", 2), ("channels", 4), ("classes", classes))
    return ModelSpec(NAME, sizes, frame, Prediction(), (first,) * joint + (second,) * single)


BACKBONE = Toy()
LAYOUTS: tuple[Layout, ...] = ()


def published(name: str) -> None:
    """Nobody has published one."""


ops.register(ToyJointMHA)
blocks.register(ToyJoint)
blocks.register(ToySingle)
BACKBONES[NAME] = __name__

__all__ = ["BACKBONE", "LAYOUTS", "Toy", "ToyJoint", "ToyJointMHA", "ToySingle", "toy_spec"]
