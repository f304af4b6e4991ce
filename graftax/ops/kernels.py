"""Attention by the kernels that jax brings: cuDNN's on NVIDIA GPUs, Pallas's splash attention on TPUs.

Both keep the n x m matrix on the chip (FlashAttention, arXiv 2205.14135), forward and backward.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.ops.placement import Axes, on_parts

LANES = 128
"""Heads are padded to a multiple of this on TPUs: the width of their registers, and what the kernel asks for."""

SPLASH_BLOCK = 512
"""Queries and keys of a tile, as in MaxText's configuration. With heads of 128 in float32 it leaves most of a core's memory
free; the whole sequence is one tile where it is shorter."""

HEADS: Axes = ("batch", None, "heads", None)


def cudnn_takes(head_dim: int, dtype: DTypeLike, capability: str) -> bool:
    """Whether cuDNN has attention, forward and backward, for such heads on a GPU of this compute capability ("9.0").

    As jax 0.10 has it (`jax._src.cudnn.fused_attention_stablehlo`): half precision, heads of at most 128 (256 from
    Hopper on) in multiples of 8, and an NVIDIA GPU from Ampere on.
    """
    major = int(capability.split(".")[0]) if capability.replace(".", "").isdecimal() else 0  # AMD's are "gfx90a"
    most = 256 if major >= 9 else 128
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= most and major >= 8


def gpu_capability() -> str:
    """Compute capability of this process's GPUs, "" where it has none."""
    devices = jax.local_devices()
    return getattr(devices[0], "compute_capability", "") if devices[0].platform == "gpu" else ""


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v by cuDNN: q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k).

    It is split over a mesh by itself. Only where `cudnn_takes` the heads; jax raises otherwise.
    """
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array | None = None, *, block: int = SPLASH_BLOCK,
    interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """softmax(q k^T / sqrt(head dim)) v by splash attention: q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k).

    `keys` (b, m) is True for those that are there; where none is, the result is zero. Tokens are padded to whole blocks and
    heads to `LANES`, padded keys masked. `interpret` runs the kernel without a TPU, slowly.
    """
    m = k.shape[1]
    size, span = (min(block, -(-length // LANES) * LANES) for length in (q.shape[1], m))
    if keys is None and m % span:
        keys = jnp.ones(k.shape[:2], bool)
    arrays = [_padded(a, s) for a, s in ((q * q.shape[-1] ** -0.5, size), (k, span), (v, span))]
    names: list[Axes] = [HEADS] * 3
    if keys is not None:
        arrays.append(jnp.pad(keys, ((0, 0), (0, -m % span))))
        names.append(("batch", None))
    run = functools.partial(_splash, size=size, span=span, interpret=interpret)
    return on_parts(run, names)(*arrays)[:, : q.shape[1], :, : q.shape[-1]]


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array | None = None, *, size: int, span: int, interpret: bool
) -> jax.Array:
    """`splash_attention` on one device, of padded arrays and scaled queries."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], size, span, interpret)
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))  # (b, h, n, k)
    if keys is None:
        return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)
    # A query meets the keys of its own segment: 1, and 0 for keys that are not there.
    segments = SegmentIds(q=jnp.ones((q.shape[0], q.shape[2]), jnp.int32), kv=keys.astype(jnp.int32))
    out = jax.vmap(kernel)(q, k, v, segments).swapaxes(1, 2)
    return jnp.where(keys.any(1)[:, None, None, None], out, 0)


@functools.lru_cache(maxsize=64)
def _kernel(heads: int, n: int, m: int, size: int, span: int, interpret: bool) -> Any:
    """jax's kernel for `heads` of n queries and m keys in tiles. It makes tables for sparse masks: once, and not traced."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        make_splash_mha,
    )

    # The fused backward kernel would keep gradients of the queries for every block of keys: memory n x m again.
    sizes = BlockSizes(
        block_q=size, block_kv=span, block_kv_compute=span, block_q_dkv=size, block_kv_dkv=span, block_kv_dkv_compute=span,
        block_q_dq=size, block_kv_dq=span,
    )  # fmt: skip
    mask = MultiHeadMask([FullMask((n, m))] * heads)
    with jax.ensure_compile_time_eval():
        return make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _padded(a: jax.Array, size: int) -> jax.Array:
    """(b, n, h, k) with zeros up to whole blocks of tokens and whole lanes of a head."""
    return jnp.pad(a, ((0, 0), (0, -a.shape[1] % size), (0, 0), (0, -a.shape[-1] % LANES)))
