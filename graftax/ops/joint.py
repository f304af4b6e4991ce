"""Joint operators: image and text mixed as one sequence, each with projections of its own.

`Joint` has the projections, a subclass what happens between them. All joint operators of a model hold the same ones, so that
any of them can start with those of any other.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.ops.attention import full_attention
from graftax.ops.attention_normed import BIASES, HeadNorm, check_attention, norm_params, turned
from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Axes, Cost, Operator, Params, carried, dense
from graftax.ops.placement import place
from graftax.ops.rope import Rope
from graftax.spec import OpSpec, Sizes

STREAMS = ("txt", "img")
"""In the order in which their tokens stand side by side."""


class Projections(nn.Module):
    """One stream's part of a joint operator.

    Attributes:
        width: channels d of a token.
        heads: heads, and channels of one.
        group: heads of queries that share one of keys and values.
        qk_norm: as in `graftax.ops.attention_normed`.
        bias: likewise.
        answers: whether what was mixed is projected back.
        init_style: as in `Operator`.
        dtype: likewise.
    """

    width: int
    heads: tuple[int, int]
    group: int
    qk_norm: str
    bias: str
    answers: bool
    init_style: str
    dtype: DTypeLike | None

    def setup(self) -> None:
        inner = self.heads[0] * self.heads[1]
        style, (first, last) = (self.init_style, self.dtype), BIASES[self.bias]
        if self.group == 1:
            self.qkv = dense(3 * inner, self.width, *style, bias=first, parts=3)
        else:
            self.q = dense(inner, self.width, *style, bias=first)
            self.kv = dense(2 * inner // self.group, self.width, *style, bias=first, parts=2)
        if self.answers:
            self.proj = dense(self.width, inner, *style, bias=last)
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = HeadNorm(self.qk_norm), HeadNorm(self.qk_norm)

    def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (b, t, h, k), keys and values (b, t, h / g, k) of a stream's tokens x (b, t, d); the first two
        normalised, in float32."""
        q, k, v = (part.reshape(*x.shape[:2], -1, self.heads[1]) for part in self._parts(x))
        if self.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (place(part, "batch", None, "heads", None) for part in (q, k, v))
        return q, k, v

    def _parts(self, x: jax.Array) -> list[jax.Array]:
        """(b, t, h k), and twice (b, t, h k / g)."""
        return jnp.split(self.qkv(x), 3, axis=-1) if self.group == 1 else [self.q(x), *jnp.split(self.kv(x), 2, axis=-1)]

    def out(self, mixed: jax.Array) -> jax.Array:
        """(b, t, h, k) -> (b, t, d)."""
        return self.proj(place(mixed.reshape(*mixed.shape[:2], -1), "batch", None, "hidden"))


class Joint(Operator):
    """y = W_out mix(W_in u) of text and image side by side: {"txt": (b, m, d), "img": (b, n, d)} -> the same.

    Queries, keys and values come from each stream's own projections, and what `mix` makes of the sequence [txt | img] goes
    back through them (MM-DiT, arXiv 2403.03206, Section 4). A subclass brings `mix` and its `core` cost.

    Attributes:
        bias: which projections have one, one of `graftax.ops.attention_normed.BIASES`.
        text_out: whether the text gets an answer, else zeros: SD3's last block has no use for one.
    """

    bias: str = "all"
    text_out: bool = True

    role = "joint"
    readout = ""
    axes: ClassVar[Axes] = {"qkv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}

    @property
    def inner(self) -> int:
        """Channels of all heads together, h k."""
        return self.sizes.heads * self.sizes.head_dim

    @property
    def head_norm(self) -> str:
        """Norm of queries and keys, one of `graftax.ops.attention_normed.NORMS`."""
        return "none"

    @property
    def sharing(self) -> int:
        """Heads of queries that share one of keys and values."""
        return 1

    @property
    def asking(self) -> int:
        """Tokens that get an answer."""
        return self.tokens if self.text_out else self.sizes.image

    def setup(self) -> None:
        self.txt, self.img = self._projections(self.text_out), self._projections(True)

    def _projections(self, answers: bool) -> Projections:
        heads = (self.sizes.heads, self.sizes.head_dim)
        return Projections(self.width, heads, self.sharing, self.head_norm, self.bias, answers, self.init_style, self.dtype)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        d, sizes = self.width, self.sizes
        streams = {"txt": jnp.zeros((1, sizes.text, d)), "img": jnp.zeros((1, sizes.image, d))}
        return (streams,), dict.fromkeys(self.reads)

    def __call__(self, streams: dict[str, jax.Array], **reads: Any) -> dict[str, jax.Array]:
        m = streams["txt"].shape[1]
        parts = [getattr(self, name).split(streams[name]) for name in STREAMS]
        q, k, v = (jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True))  # (b, m + n, h, k) each
        mixed = self.mix(q, k, v, **reads)
        if not self.text_out:
            return {"txt": jnp.zeros_like(streams["txt"]), "img": self.img.out(mixed)}
        return {"txt": self.txt.out(mixed[:, :m]), "img": self.img.out(mixed[:, m:])}

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, **reads: Any) -> jax.Array:
        """The operator proper, of all tokens with the text before the image: (b, m + n, h, k) each -> those that get an
        answer (b, asking, h, k). `reads`: what it reads of the context."""
        raise NotImplementedError

    def answered(self, tokens: jax.Array) -> jax.Array:
        """Of all tokens (b, m + n, ...) those that get an answer (b, asking, ...)."""
        return tokens if self.text_out else tokens[:, tokens.shape[1] - self.sizes.image :]

    def cost(self) -> Cost:
        d, inner, core, (first, last) = self.width, self.inner, self.core(), BIASES[self.bias]
        answers, qkv = 1 + self.text_out, inner + 2 * inner // self.sharing
        params = 2 * d * qkv + answers * inner * d
        params += 2 * qkv * first + answers * d * last
        params += 2 * norm_params(self.head_norm, self.sizes.head_dim)
        projections = 2 * self.tokens * d * qkv + 2 * self.asking * inner * d
        return Cost(params + core.params, core.op_flops, projections + core.featurizer_flops)

    def core(self) -> Cost:
        """Cost of `mix`."""
        raise NotImplementedError

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The projections of another joint operator, and its norms and filters where there is a place for them.

        Raises `BadInput` where both have an option that decides on the shapes or the meaning of these, and not the same.
        """
        if not isinstance(donor, Joint):
            return None
        for name in ("qk_norm", "bias", "text_out"):
            ours, theirs = (getattr(one, name, None) for one in (self, donor))
            if None not in (ours, theirs) and ours != theirs:
                raise BadInput(f"{self.kind} {name}: got {ours!r}, expected {theirs!r} as {donor.kind} has it")
        if self.sharing != donor.sharing:
            plain = {stream: donor.separate(weights[stream]) for stream in STREAMS}
            weights = {**weights, **{stream: self.shared(layers) for stream, layers in plain.items()}}
        streams = {stream: carried(fresh[stream], weights[stream]) for stream in STREAMS}
        return {**carried(fresh, weights), **streams}

    def separate(self, layers: Params) -> Params:
        """A stream's layers as they would be without heads that share keys and values."""
        return layers

    def shared(self, layers: Params) -> Params:
        """A stream's layers with such heads, where this operator has them."""
        return layers

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_attention(op)


class JointMHA(Joint):
    """Attention of text and image together, all tokens looking at all (MM-DiT, arXiv 2403.03206, Section 4; Flux's double
    blocks with norms and the context's rotary positions).

    Attributes:
        qk_norm: norms of queries and keys, one of `graftax.ops.attention_normed.NORMS`.
    """

    qk_norm: str = "none"

    kind = "joint_mha"
    reads = ("rope",)

    @property
    def head_norm(self) -> str:
        return self.qk_norm

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, *, rope: Rope | None) -> jax.Array:
        q, k = turned(q, k, rope)
        return self.attend(self.answered(q).astype(v.dtype), k.astype(v.dtype), v)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention proper: q (b, asking, h, k), k and v (b, m + n, h, k) -> (b, asking, h, k)."""
        return full_attention(q, k, v)

    def core(self) -> Cost:
        return Cost(0, self.pairs() * (4 * self.inner + 2 * self.sizes.heads))

    def pairs(self) -> int:
        """Pairs of a query and a key that are counted."""
        return self.asking * self.tokens
