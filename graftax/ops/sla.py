"""Sparse-linear attention: softmax over the blocks of keys that matter most, linear attention for the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.attention import DENSE_BELOW, MHA, attend, full_attention
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, Overrides, Params, Shapes, carried, linear_keys, silent
from graftax.ops.kernels import HEADS
from graftax.ops.linear import EPS, FEATURES, check_feature, linear_attention, linear_flops
from graftax.ops.placement import on_parts
from graftax.ops.target import core_memory, kernels, target
from graftax.spec import OpSpec, Option, Sizes

COVERS = ("all", "rest")
"""Keys of the linear branch: all, as in the authors' code, or those that the softmax left out, as in the paper."""


def chosen_blocks(q: jax.Array, k: jax.Array, block: int, count: int) -> jax.Array:
    """Numbers (b, h, i, count) of the blocks of keys that each of i blocks of queries attends to: those whose mean key has
    the largest product with its mean query. q (b, n, h, k), k (b, m, h, k); no gradient.

    The authors take the mean of all keys off first, which changes every product of a query's by the same number.
    """
    q, k = (_means(jax.lax.stop_gradient(a).astype(jnp.float32), block) for a in (q, k))
    return jax.lax.top_k(jnp.einsum("bhik,bhjk->bhij", q, k), count)[1]


def sparse_attention(q: jax.Array, k: jax.Array, v: jax.Array, chosen: jax.Array, block: int) -> jax.Array:
    """Softmax attention of each block of queries to the blocks of keys `chosen` (b, h, i, count) for it.

    q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k). Small inputs are handled at once, others one block of queries after
    the other, also on the way back, so that memory is linear in n. On TPUs the same by a kernel.
    """
    if kernels():
        from graftax.ops.pallas.sparse import block_sparse_attention, sparse_takes

        if sparse_takes(k.shape, block, k.dtype, core_memory()):
            run = functools.partial(block_sparse_attention, block=block)
            return on_parts(run, [HEADS] * 3 + [("batch", "heads", None, None)])(q, k, v, chosen)
    (b, n, h, _), m, count = q.shape, k.shape[1], chosen.shape[-1]
    queries, keys, values = (_blocks(a, block) for a in (q, k, v))  # (b, h, blocks, s, k)

    def row(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        q, numbers = one  # (b, h, s, k), (b, h, count)
        k, v = (
            jnp.take_along_axis(a, numbers[..., None, None], 2).reshape(b, h, count * block, 1, -1) for a in (keys, values)
        )
        there = (numbers[..., None] * block + jnp.arange(block)).reshape(b, h, 1, 1, -1) < m
        return attend(q[..., None, :], k, v, None if m % block == 0 else there)[..., 0, :]

    rows = jnp.moveaxis(queries, 2, 0), jnp.moveaxis(chosen, 2, 0)
    at_once = n * count * block < DENSE_BELOW[target()]
    out = jax.vmap(row)(rows) if at_once else jax.lax.map(jax.checkpoint(row), rows)  # (i, b, h, s, k)
    return out.transpose(1, 0, 3, 2, 4).reshape(b, -1, h, q.shape[-1])[:, :n]


def linear_rest(q: jax.Array, k: jax.Array, v: jax.Array, chosen: jax.Array, block: int) -> jax.Array:
    """`linear_attention` of each block of queries to all blocks of keys but those `chosen` (b, h, i, count) for it.

    q (b, n, h, k), k (b, m, h, k), features, and v (b, m, h, k) -> (b, n, h, k); zero where nothing is left. Blocks of keys
    are summed up by themselves, then what a block of queries may see of them.
    """
    (b, n, h, width), kind = q.shape, v.dtype
    q, k, v = (_blocks(a.astype(jnp.float32), block) for a in (q, k, v))  # (b, h, blocks, s, k)
    rest = 1 - jax.nn.one_hot(chosen, k.shape[2]).sum(-2)  # (b, h, i, j)
    state = jnp.einsum("bhij,bhjkc->bhikc", rest, jnp.einsum("bhjsk,bhjsc->bhjkc", k, v))
    total = jnp.einsum("bhij,bhjk->bhik", rest, k.sum(3))
    out = jnp.einsum("bhisk,bhikc->bhisc", q, state) / (jnp.einsum("bhisk,bhik->bhis", q, total)[..., None] + EPS)
    return out.transpose(0, 2, 3, 1, 4).reshape(b, -1, h, width)[:, :n].astype(kind)


def _blocks(a: jax.Array, size: int) -> jax.Array:
    """(b, n, h, k) -> (b, h, blocks, size, k), zeros behind the last token."""
    b, n, h, width = a.shape
    a = jnp.pad(a, ((0, 0), (0, -n % size), (0, 0), (0, 0)))
    return a.reshape(b, -1, size, h, width).transpose(0, 3, 1, 2, 4)


def _means(a: jax.Array, size: int) -> jax.Array:
    """(b, n, h, k) -> means of the tokens of each block (b, h, blocks, k)."""
    tokens = jnp.minimum(size, a.shape[1] - jnp.arange(0, a.shape[1], size))
    return _blocks(a, size).sum(3) / tokens[:, None]


def kept(keys: int, block: int, topk: float) -> int:
    """How many blocks of keys a block of queries attends to: this share of them, rounded down, and one at least."""
    return max(1, int(topk * -(-keys // block)))


def sparse_linear(
    q: jax.Array, k: jax.Array, v: jax.Array, project: Callable[[jax.Array], jax.Array], block: int, topk: float,
    feature: str, covers: str,
) -> jax.Array:  # fmt: skip
    """`sparse_attention` + project(linear attention): q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k).

    `project` (.., k) -> (.., k); the rest are the options of `SLA`. Where all blocks are kept, the first part is full
    attention.
    """
    count, phi = kept(k.shape[1], block, topk), FEATURES[feature]
    chosen = chosen_blocks(q, k, block, count)
    every = count * block >= k.shape[1]
    sparse = full_attention(q, k, v) if every else sparse_attention(q, k, v, chosen, block)
    if covers == "all":
        return sparse + project(linear_attention(phi(q), phi(k), v))
    return sparse + project(linear_rest(phi(q), phi(k), v, chosen, block))


def sparse_linear_cost(queries: int, keys: int, sizes: Sizes, block: int, topk: float) -> Cost:
    """Parameters of the projection, FLOPs of both branches and of the choice."""
    h, width = sizes.heads, sizes.head_dim
    pairs = queries * min(kept(keys, block, topk) * block, keys)
    choice = -(-queries // block) * -(-keys // block) * 2 * h * width + (queries + keys) * h * width
    linear = linear_flops(queries, keys, h * width, width) + 2 * queries * h * width**2
    return Cost(width**2 + width, pairs * (4 * h * width + 2 * h) + choice + linear)


def check_sparse_linear(op: OpSpec) -> None:
    """Raise `BadInput` where an option of `SLA` is out of range."""
    check_feature(op)
    if op.option("block") < 1:
        raise BadInput(f"{op.kind} block: got {op.option('block')}, expected 1 or more")
    if not 0 < op.option("topk") <= 1:
        raise BadInput(f"{op.kind} topk: got {op.option('topk')}, expected a share above 0 and up to 1")
    if op.option("covers") not in COVERS:
        raise BadInput(f"{op.kind} covers: got {op.option('covers')!r}, expected one of {COVERS}")


class SLA(MHA):
    """softmax over the chosen blocks of keys + W_l linear(phi(q), phi(k), v), tokens as they come in blocks of equal size.

    Sparse-linear attention (Zhang et al., arXiv 2509.24006, Section 4; reference: thu-ml/SLA, core.py). Every block of
    queries attends to the same number of blocks of keys (`chosen_blocks`), head by head. W_l, one for all heads, starts at
    zero: at first it is block-sparse attention, and with `topk` 1 it is attention. Nothing of it is causal, and an image
    is cut into blocks in raster order.

    Attributes:
        block: tokens of a block, of queries as of keys.
        topk: share of the blocks of keys that a query attends to.
        feature: phi of `graftax.ops.linear`.
        covers: one of `COVERS`.
    """

    block: int = 64
    topk: float = 0.2
    feature: str = "softmax"
    covers: str = "all"

    kind = "sla"
    torch_keys = (*linear_keys("qkv", "sla_qkv"), *linear_keys("proj", "out_proj"), *linear_keys("proj_l", "proj_l"))

    def setup(self) -> None:
        super().setup()
        self.proj_l = silent(self.sizes.head_dim, self.dtype)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return sparse_linear(q, k, v, self.proj_l, self.block, self.topk, self.feature, self.covers)

    def cost(self) -> Cost:
        plain, core = super().cost(), sparse_linear_cost(self.tokens, self.tokens, self.sizes, self.block, self.topk)
        return Cost(plain.params + core.params, core.op_flops, plain.featurizer_flops)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections; the linear branch of a donor that has it."""
        return carried(fresh, {**weights, **donor.projections(weights)}) if isinstance(donor, MHA) else None

    def start(self, donor: Operator) -> str:
        whole = kept(self.tokens, self.block, self.topk) * self.block >= self.tokens
        return KEPT if self == donor or (whole and donor.kind == "mha") else CHANGED

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_sparse_linear(op)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {name: overrides.get(name, default) for name, default in cls.options().items()}
