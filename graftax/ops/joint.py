"""Joint attention: image and text in one attention, each with projections of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from graftax.ops.attention import full_attention
from graftax.ops.attention_normed import HeadNorm, check_attention, turned
from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Axes, Cost, Operator, Params, dense
from graftax.ops.placement import place
from graftax.ops.rope import Rope
from graftax.spec import OpSpec, Sizes

STREAMS = ("txt", "img")
"""In the order in which their tokens stand side by side."""


class Projections(nn.Module):
    """One stream's part of a joint attention.

    Attributes:
        width: channels d of a token.
        heads: heads, and channels of one.
        qk_norm: as in `graftax.ops.attention_normed`.
        bias: likewise.
        answers: whether what was mixed is projected back.
        init_style: as in `Operator`.
        dtype: likewise.
    """

    width: int
    heads: tuple[int, int]
    qk_norm: str
    bias: str
    answers: bool
    init_style: str
    dtype: DTypeLike | None

    def setup(self) -> None:
        inner = self.heads[0] * self.heads[1]
        style = (self.init_style, self.dtype)
        self.qkv = dense(3 * inner, self.width, *style, bias=self.bias != "none", parts=3)
        if self.answers:
            self.proj = dense(self.width, inner, *style, bias=self.bias == "all")
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = HeadNorm(self.qk_norm), HeadNorm(self.qk_norm)

    def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values (b, t, h, k) of a stream's tokens x (b, t, d); the first two normalised, in float32."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, *self.heads)
        q, k, v = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))
        if self.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (place(part, "batch", None, "heads", None) for part in (q, k, v))
        return q, k, v

    def out(self, mixed: jax.Array) -> jax.Array:
        """(b, t, h, k) -> (b, t, d)."""
        return self.proj(place(mixed.reshape(*mixed.shape[:2], -1), "batch", None, "hidden"))


class JointMHA(Operator):
    """Attention of text and image together: {"txt": (b, m, d), "img": (b, n, d)} -> the same.

    Queries, keys and values come from each stream's own projections, then all tokens look at all (MM-DiT, arXiv 2403.03206,
    Section 4; Flux's double blocks with norms and the context's rotary positions).

    Attributes:
        qk_norm: norms of queries and keys, one of `graftax.ops.attention_normed.NORMS`.
        bias: which projections have one, one of `BIASES` there.
        text_out: whether the text gets an answer, else zeros: SD3's last block has no use for one.
    """

    qk_norm: str = "none"
    bias: str = "all"
    text_out: bool = True

    kind = "joint_mha"
    role = "joint"
    reads = ("rope",)
    readout = ""
    axes: ClassVar[Axes] = {"qkv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}

    @property
    def inner(self) -> int:
        """Channels of all heads together, h k."""
        return self.sizes.heads * self.sizes.head_dim

    def setup(self) -> None:
        self.txt, self.img = self._projections(self.text_out), self._projections(True)

    def _projections(self, answers: bool) -> Projections:
        heads = (self.sizes.heads, self.sizes.head_dim)
        return Projections(self.width, heads, self.qk_norm, self.bias, answers, self.init_style, self.dtype)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        d, sizes = self.width, self.sizes
        return ({"txt": jnp.zeros((1, sizes.text, d)), "img": jnp.zeros((1, sizes.image, d))},), {"rope": None}

    def __call__(self, streams: dict[str, jax.Array], *, rope: Rope | None) -> dict[str, jax.Array]:
        m = streams["txt"].shape[1]
        parts = [getattr(self, name).split(streams[name]) for name in STREAMS]
        q, k, v = (jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True))  # (b, m + n, h, k) each
        q, k = turned(q, k, rope)
        mixed = self.mix(q.astype(v.dtype)[:, 0 if self.text_out else m :], k.astype(v.dtype), v)
        if not self.text_out:
            return {"txt": jnp.zeros_like(streams["txt"]), "img": self.img.out(mixed)}
        return {"txt": self.txt.out(mixed[:, :m]), "img": self.img.out(mixed[:, m:])}

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention proper, of all tokens with the text before the image: (b, m + n, h, k) each. Where the text gets no
        answer, q is the image's alone."""
        return full_attention(q, k, v)

    def cost(self) -> Cost:
        d, inner, m, n, h = self.width, self.inner, self.sizes.text, self.sizes.image, self.sizes.heads
        answers = 1 + self.text_out
        params = 2 * 3 * d * inner + answers * inner * d
        params += 2 * 3 * inner * (self.bias != "none") + answers * d * (self.bias == "all")
        params += 2 * 2 * self.sizes.head_dim * (self.qk_norm == "rms")
        asking = n + m * self.text_out
        projections = 2 * 3 * (m + n) * d * inner + 2 * asking * inner * d
        return Cost(params, self.attended(asking) * (4 * inner + 2 * h), projections)

    def attended(self, asking: int) -> int:
        """Pairs of a query and a key that are counted, `asking` being the queries."""
        return asking * self.tokens

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The projections and norms of another joint attention, where they are of the same shapes."""
        same = jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, weights)
        return weights if isinstance(donor, JointMHA) and same else None

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_attention(op)
