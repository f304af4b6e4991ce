"""Attention in which several heads of queries share one head of keys and values: grouped queries."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.attention import MHA, full_attention
from graftax.ops.base import (
    CHANGED,
    IN_HIDDEN,
    KEPT,
    OUT_HIDDEN,
    Axes,
    Cost,
    Operator,
    Overrides,
    Params,
    Shapes,
    linear_keys,
)
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes


def grouped_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`full_attention` of q (b, n, h, k) on k and v (b, m, h / g, k), query heads j g .. j g + g - 1 on head j.

    A group's queries stand one after the other as if they were more tokens, so that no key is copied.
    """
    (b, n, h, width), shared = q.shape, k.shape[2]
    q = q.reshape(b, n, shared, h // shared, width).swapaxes(2, 3)  # (b, n, g, h / g, k)
    out = full_attention(q.reshape(b, -1, shared, width), k, v).reshape(q.shape)
    return out.swapaxes(2, 3).reshape(b, n, h, width)


def pooled(qkv: Params, heads: int, group: int) -> Params:
    """Layers "q" and "kv" of grouped queries: the means of the keys and values (d, 3 h k) of every `group` heads."""

    def parts(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        three = a.reshape(*a.shape[:-1], 3, heads // group, group, -1)  # (.., 3, h / g, g, k)
        q, kv = three[..., 0, :, :, :], three[..., 1:, :, :, :].mean(-2)
        return q.reshape(*a.shape[:-1], -1), kv.reshape(*a.shape[:-1], -1)

    both = {name: parts(leaf) for name, leaf in qkv.items()}
    return {layer: {name: leaf[i] for name, leaf in both.items()} for i, layer in enumerate(("q", "kv"))}


def repeated(q: Params, kv: Params, heads: int, group: int) -> Params:
    """The layer "qkv" (d, 3 h k) that computes what "q" and "kv" do: keys and values once for each head that reads them."""

    def whole(q: jax.Array, kv: jax.Array) -> jax.Array:
        both = kv.reshape(*kv.shape[:-1], 2, heads // group, -1)
        return jnp.concatenate([q, jnp.repeat(both, group, axis=-2).reshape(*kv.shape[:-1], -1)], axis=-1)

    return {name: whole(leaf, kv[name]) for name, leaf in q.items()}


def check_group(op: OpSpec, sizes: Sizes) -> None:
    """Raise `BadInput` where groups do not share out the heads."""
    group = op.option("group")
    if group < 1 or sizes.heads % group:
        raise BadInput(f"{op.kind} group: got {group}, expected a divisor of the {sizes.heads} heads")


class GQA(MHA):
    """`MHA` whose heads of queries share keys and values, `group` of them each (Ainslie et al., arXiv 2305.13245, Section
    2.2; all of them: multi-query attention, arXiv 1911.02150).

    Taken over from attention, shared heads are the means of those that they replace (Section 2.1 there).

    Attributes:
        group: query heads g that share one head of keys and values, a divisor of the heads.
    """

    group: int = 2

    kind = "gqa"
    torch_keys = (*linear_keys("q", "q"), *linear_keys("kv", "kv"), *linear_keys("proj", "proj"))
    axes: ClassVar[Axes] = {"q/kernel": OUT_HIDDEN, "kv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}

    @property
    def shared(self) -> int:
        """Channels of keys, as many as of values."""
        return self.inner // self.group

    def setup(self) -> None:
        self.q = self.linear(self.inner, self.width)
        self.kv = self.linear(2 * self.shared, self.width, parts=2)
        self.proj = self.linear(self.width, self.inner)

    def heads_of(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (b, n, h, k), keys and values (b, n, h / g, k) of tokens x (b, n, d)."""
        parts = (self.q(x), *jnp.split(self.kv(x), 2, axis=-1))
        heads = (part.reshape(*x.shape[:2], -1, self.sizes.head_dim) for part in parts)
        q, k, v = (place(part, "batch", None, "heads", None) for part in heads)
        return q, k, v

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return grouped_attention(q, k, v)

    def cost(self) -> Cost:
        plain, fewer = super().cost(), 2 * (self.inner - self.shared)  # channels of keys and values
        return Cost(
            plain.params - (self.width + 1) * fewer,
            plain.op_flops,
            plain.featurizer_flops - 2 * self.tokens * self.width * fewer,
        )

    def projections(self, weights: Params) -> Params:
        qkv = repeated(weights["q"], weights["kv"], self.sizes.heads, self.group)
        return {"qkv": qkv, "proj": weights["proj"]}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections, with the means of keys and values that are shared from now on."""
        if isinstance(donor, GQA) and donor.group == self.group:
            return weights
        taken = super().transplant(fresh, donor, weights)
        return taken and {**pooled(taken["qkv"], self.sizes.heads, self.group), "proj": taken["proj"]}

    def start(self, donor: Operator) -> str:
        sharing = donor.group if isinstance(donor, GQA) else 1 if donor.kind == "mha" else 0
        return KEPT if sharing and sharing % self.group == 0 else CHANGED

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_group(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"group": 2 * shapes["q.weight"][0] // shapes["kv.weight"][0]}
