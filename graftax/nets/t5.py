"""T5 v1.1's encoder and UMT5's: texts as sequences of vectors, which PixArt, Stable Diffusion 3, Flux and AuraFlow read.

Pre-norm blocks of self-attention and a gated MLP, without biases. Norms divide by the root mean square and subtract no mean;
attention is not divided by sqrt(k); positions are one learned number per head and distance, T5's the same table in every
block, UMT5's a table for each. Numerics are those of transformers' T5EncoderModel and UMT5EncoderModel in float32.

Weights may be bfloat16. Then the inputs of matrix products are too, and their sums float32; the residual stream, norms,
attention's logits and its softmax stay float32. Weights of any other type are used in float32: T5's activations exceed what
float16 holds.

Blocks run one by one through one compiled function, so that compiling does not grow with their number.

Sources: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (arXiv
1910.10683), 2.1, and mesh_tensorflow/transformer/transformer_layers.py for the rows of its position table; Shazeer, "GLU
Variants Improve Transformer" (arXiv 2002.05202), equation 6; Chung et al., "UniMax: Fairer and more Effective Language
Sampling for Large-Scale Multilingual Pretraining" (arXiv 2304.09151), for UMT5.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.nets.text_layers import Linear, attend, product_dtype

Params = dict[str, Any]


@dataclass(frozen=True)
class T5Spec:
    """Sizes of a T5 encoder; fields are named as in its config.json of transformers. Raises `BadInput` on impossible ones.

    Attributes:
        vocab_size: rows of the embedding; a tokenizer may use fewer.
        d_model: width d of a token.
        d_kv: width k of a head; h k need not be d.
        d_ff: hidden width of the MLPs.
        num_layers: blocks.
        num_heads: heads h.
        relative_attention_num_buckets: rows of the position table, half of them for either direction.
        relative_attention_max_distance: distance from which on all share a row.
        layer_norm_epsilon: added to the mean square.
        pad_token_id: what fills a short text up.
        eos_token_id: what ends a text.
        shared_positions: whether all blocks have one position table; in UMT5 each has its own.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: int = 1
    # Not in `repr`, which goes into the hashes of stored texts: the weights, which do too, tell these apart.
    shared_positions: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        for size in dataclasses.fields(self)[:8]:
            value = getattr(self, size.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"T5Spec.{size.name}: got {value!r}, expected a positive integer")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or distance <= buckets // 4:
            expected = f"a multiple of 4, and a distance above {buckets // 4}"
            raise BadInput(f"T5Spec: {buckets} buckets and max_distance {distance} of positions, expected {expected}")
        if not isinstance(self.layer_norm_epsilon, float) or not 0 < self.layer_norm_epsilon < 1:
            raise BadInput(f"T5Spec.layer_norm_epsilon: got {self.layer_norm_epsilon!r}, expected a number in (0, 1)")
        for name in ("pad_token_id", "eos_token_id"):
            token = getattr(self, name)
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise BadInput(f"T5Spec.{name}: got {token!r}, expected a token in 0..{self.vocab_size - 1}")

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{'T5' if self.shared_positions else 'UMT5'} of {self.num_layers} blocks, width {self.d_model}"


VARIANTS = {
    "small": T5Spec(32128, 512, 64, 1024, 8, 6),
    "base": T5Spec(32128, 768, 64, 2048, 12, 12),
    "large": T5Spec(32128, 1024, 64, 2816, 24, 16),
    "xl": T5Spec(32128, 2048, 64, 5120, 24, 32),
    "xxl": T5Spec(32128, 4096, 64, 10240, 24, 64),
    "pile-xl": T5Spec(32128, 2048, 64, 5120, 24, 32, pad_token_id=1, eos_token_id=2, shared_positions=False),
}
"""The published encoders of v1.1, of 35, 110, 341, 1,224 and 4,762 million parameters, and AuraFlow's, a UMT5 of 1,224."""


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, float32.

    Attributes:
        epsilon: added to the mean square.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale: Any = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * scale.astype(jnp.float32)


class Block(nn.Module):
    """One block: x (b, m, d) float32, mask (b, m) bool, bias (h, m, m) float32 -> (b, m, d) float32.

    Attributes:
        spec: sizes.
        dtype: of the inputs of matrix products.
    """

    spec: T5Spec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        x = x + self._attention(RMSNorm(self.spec.layer_norm_epsilon, name="norm1")(x), mask, bias)
        return x + self._mlp(RMSNorm(self.spec.layer_norm_epsilon, name="norm2")(x))

    def _attention(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        (b, m, d), h, k = x.shape, self.spec.num_heads, self.spec.d_kv
        stds = {"query": (d * k) ** -0.5, "key": None, "value": None}  # the query's makes up for the missing 1 / sqrt(k)
        query, key, value = (self._linear(name, h * k, std)(x).reshape(b, m, h, k) for name, std in stds.items())
        return self._linear("proj", d)(attend(query, key, value, bias, mask[:, None, None, :], self.dtype))

    def _mlp(self, x: jax.Array) -> jax.Array:
        gate = nn.gelu(self._linear("gate", self.spec.d_ff)(x), approximate=True)
        return self._linear("fc2", x.shape[-1])(gate * self._linear("fc1", self.spec.d_ff)(x))

    def _linear(self, name: str, features: int, std: float | None = None) -> Linear:
        return Linear(features, self.dtype, std, name=name)


def init(spec: T5Spec, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    keys = jax.random.split(key, spec.num_layers + 2)
    x = jnp.zeros((1, 1, spec.d_model))
    given = (x, jnp.ones((1, 1), bool), jnp.zeros((spec.num_heads, 1, 1)))
    blocks = {f"blocks_{i}": Block(spec).init(keys[i], *given)["params"] for i in range(spec.num_layers)}
    params = {
        "embed": {"embedding": jax.random.normal(keys[-1], (spec.vocab_size, spec.d_model))},
        **blocks,
        "norm": {"scale": jnp.ones(spec.d_model)},
    }
    shape = (spec.relative_attention_num_buckets, spec.num_heads)
    tables = [params] if spec.shared_positions else blocks.values()
    for i, place in enumerate(tables):
        key = keys[-2] if spec.shared_positions else jax.random.fold_in(keys[-2], i)
        place["positions"] = {"embedding": jax.random.normal(key, shape) * spec.d_model**-0.5}
    return params


def encode(
    spec: T5Spec, params: Params, ids: jax.Array, mask: jax.Array | None = None, hidden: bool = False
) -> dict[str, Any]:
    """{"last": (b, m, d) float32}, the last of `hidden_states`; with `hidden` also "hidden", the list of all of them."""
    states = hidden_states(spec, params, ids, mask)
    if hidden:
        kept = list(states)
        return {"last": kept[-1], "hidden": kept}
    return {"last": collections.deque(states, maxlen=1).pop()}


def hidden_states(spec: T5Spec, params: Params, ids: jax.Array, mask: jax.Array | None = None) -> Iterator[jax.Array]:
    """num_layers + 1 arrays (b, m, d) float32: the embeddings, what each block but the last gives, the last's normalised.

    ids (b, m) int, each below `spec.vocab_size`; mask (b, m), zero where a token must not be seen, None: all are. Logits
    take 4 b h m^2 bytes. Where weights and texts are split over devices, those of one block are gathered at a time.
    """
    seen = np.ones(ids.shape, np.int32) if mask is None else mask
    x = _embed(params["embed"]["embedding"], ids)
    shared = _bias(spec, params["positions"]["embedding"], ids.shape[1]) if spec.shared_positions else None
    for i in range(spec.num_layers):
        yield x
        block = params[f"blocks_{i}"]
        bias = _bias(spec, block["positions"]["embedding"], ids.shape[1]) if shared is None else shared
        x = _block(spec, block, x, seen, bias)
    yield _normalised(spec, params["norm"], x)


@jax.jit
def _embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids].astype(jnp.float32)


@partial(jax.jit, static_argnames="spec")
def _block(spec: T5Spec, params: Params, x: jax.Array, mask: ArrayLike, bias: jax.Array) -> jax.Array:
    dtype = product_dtype(params["query"]["kernel"])
    with jax.default_matmul_precision("highest"):  # of float32; bfloat16 is exact as it is
        return Block(spec, dtype).apply({"params": params}, x, mask != 0, bias)  # pyright: ignore[reportReturnType]


@partial(jax.jit, static_argnames="spec")
def _normalised(spec: T5Spec, params: Params, x: jax.Array) -> jax.Array:
    return RMSNorm(spec.layer_norm_epsilon).apply({"params": params}, x)  # pyright: ignore[reportReturnType]


@partial(jax.jit, static_argnames=("spec", "length"))
def _bias(spec: T5Spec, table: jax.Array, length: int) -> jax.Array:
    """What positions add to the logits: table (buckets, h) -> (h, m, m) float32, queries before keys."""
    at = np.arange(length)
    rows = buckets(at[None, :] - at[:, None], spec.relative_attention_num_buckets, spec.relative_attention_max_distance)
    return table[rows].astype(jnp.float32).transpose(2, 0, 1)  # (m, m, h) -> (h, m, m)


def buckets(distances: np.ndarray, count: int, furthest: int) -> np.ndarray:
    """Row of the position table for key minus query, any shape, int: the first half for keys at or before the query.

    Of either half the first rows are one distance each, the others grow by a constant factor up to `furthest`.
    """
    half, exact = count // 2, count // 4
    away = np.abs(distances)
    # In float32, as PyTorch rounds it: on the border between two rows a last digit decides.
    steps = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(furthest / exact))
    far = np.minimum(exact + (steps * np.float32(half - exact)).astype(int), half - 1)
    return np.where(distances > 0, half, 0) + np.where(away < exact, away, far)
