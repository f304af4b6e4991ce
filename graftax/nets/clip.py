"""CLIP's text models: texts as sequences of vectors and as one vector, which Stable Diffusion 3 and Flux read.

Pre-norm blocks of causal self-attention and an MLP, with biases; learned positions. A text's one vector is the row of its
end token. Numerics are those of transformers' CLIPTextModel and CLIPTextModelWithProjection in float32; types as in
`graftax.nets.text_layers`, the residual stream, norms and softmax in float32.

Blocks run one by one through one compiled function, so that compiling does not grow with their number.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), 2.4;
Ilharco et al., OpenCLIP (github.com/mlfoundations/open_clip), for the model G.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from graftax.checkpoint.members import shown
from graftax.errors import BadInput
from graftax.nets.text_layers import Linear, attend, product_dtype

Params = dict[str, Any]

ACTIVATIONS = {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x), "gelu": partial(nn.gelu, approximate=False)}
"""By `hidden_act` of `config.json`: OpenAI's models, and OpenCLIP's."""

LARGEST_ID = 2
"""The `eos_token_id` of old configs, which is not that of their tokenizers: there the end is the largest id of a text."""


@dataclass(frozen=True)
class CLIPSpec:
    """Sizes of a CLIP text model, named as in its config.json of transformers. Raises `BadInput` on impossible ones.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width d of a token.
        intermediate_size: hidden width of the MLPs.
        num_hidden_layers: blocks.
        num_attention_heads: heads h.
        max_position_embeddings: tokens of the longest text.
        projection_dim: width of the projection, where the weights have one; 0: they have none.
        hidden_act: of the MLPs, one of `ACTIVATIONS`.
        layer_norm_eps: added to the variance.
        eos_token_id: what ends a text; see `LARGEST_ID`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    projection_dim: int = 0
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        for size in dataclasses.fields(self)[:7]:
            value, least = getattr(self, size.name), int(size.name != "projection_dim")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(f"CLIPSpec.{size.name}: got {value!r}, expected an integer of at least {least}")
        if self.hidden_size % self.num_attention_heads:
            raise BadInput(
                f"CLIPSpec.hidden_size: {self.hidden_size}, expected a multiple of {self.num_attention_heads} heads"
            )
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATIONS:
            raise BadInput(f"CLIPSpec.hidden_act: got {shown(self.hidden_act)}, expected {' or '.join(ACTIVATIONS)}")
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise BadInput(f"CLIPSpec.layer_norm_eps: got {self.layer_norm_eps!r}, expected a number in (0, 1)")
        if not isinstance(self.eos_token_id, int) or isinstance(self.eos_token_id, bool) or self.eos_token_id < 0:
            raise BadInput(f"CLIPSpec.eos_token_id: got {self.eos_token_id!r}, expected a token")

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"CLIP of {self.num_hidden_layers} blocks, width {self.hidden_size}"


VARIANTS = {
    "L": CLIPSpec(49408, 768, 3072, 12, 12),
    "G": CLIPSpec(49408, 1280, 5120, 32, 20, projection_dim=1280, hidden_act="gelu"),
}
"""Text models of OpenAI's ViT-L/14 (without its projection) and OpenCLIP's ViT-bigG/14: 123 and 695 million parameters."""


class Block(nn.Module):
    """One block: x (b, m, d) float32, mask (b, m) bool -> (b, m, d) float32.

    Attributes:
        spec: sizes.
        dtype: of the inputs of matrix products.
    """

    spec: CLIPSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self._attention(norm(self.spec, "norm1")(x), mask)
        hidden = self._linear("fc1", self.spec.intermediate_size)(norm(self.spec, "norm2")(x))
        return x + self._linear("fc2", x.shape[-1])(ACTIVATIONS[self.spec.hidden_act](hidden))

    def _attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        (b, m, d), h = x.shape, self.spec.num_attention_heads
        query, key, value = (self._linear(name, d)(x).reshape(b, m, h, -1) for name in ("query", "key", "value"))
        seen = jnp.tril(jnp.ones((m, m), bool)) & mask[:, None, None, :]  # (b, 1, m, m)
        return self._linear("proj", d)(attend(query * (d // h) ** -0.5, key, value, 0.0, seen, self.dtype))

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, self.dtype, bias=True, name=name)


def norm(spec: CLIPSpec, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation over channels, float32."""
    return nn.LayerNorm(epsilon=spec.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, name=name)


def init(spec: CLIPSpec, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    keys, d = jax.random.split(key, spec.num_hidden_layers + 3), spec.hidden_size
    given = jnp.zeros((1, 1, d)), jnp.ones((1, 1), bool)
    params = {
        "embed": {"embedding": 0.02 * jax.random.normal(keys[-1], (spec.vocab_size, d))},
        "positions": {"embedding": 0.02 * jax.random.normal(keys[-2], (spec.max_position_embeddings, d))},
        **{f"blocks_{i}": Block(spec).init(keys[i], *given)["params"] for i in range(spec.num_hidden_layers)},
        "norm": {"scale": jnp.ones(d), "bias": jnp.zeros(d)},
    }
    if spec.projection_dim:
        params["projection"] = {"kernel": d**-0.5 * jax.random.normal(keys[-3], (d, spec.projection_dim))}
    return params


def encode(
    spec: CLIPSpec, params: Params, ids: jax.Array, mask: jax.Array | None = None, hidden: bool = False
) -> dict[str, Any]:
    """{"last": (b, m, d), "pooled": (b, d)} float32: the last block's output, normalised, and its row at the end token;
    "projected" (b, projection_dim) where the weights have a projection; with `hidden` also "hidden", the list of the
    embeddings and of what each block returns, none of them normalised.

    ids (b, m) int, each below `spec.vocab_size`; mask (b, m), zero where a token must not be seen, None: no token sees later
    ones, and that is all. The end is where `eos_token_id` stands first, or 0 where it does not; see `LARGEST_ID`. Raises
    `BadInput` on texts that are too long.
    """
    if (most := spec.max_position_embeddings) < ids.shape[1]:
        raise BadInput(f"input_ids: {ids.shape[1]} tokens, expected at most {most}, for which CLIP has positions")
    seen = np.ones(ids.shape, np.int32) if mask is None else mask
    states = [_embed(params["embed"]["embedding"], params["positions"]["embedding"], ids)]
    for i in range(spec.num_hidden_layers):
        x = _block(spec, params[f"blocks_{i}"], states[-1], seen)
        states = [*states, x] if hidden else [x]
    ends = {name: params[name] for name in ("norm", "projection") if name in params}
    return {**_pooled(spec, ends, states[-1], ids), **({"hidden": states} if hidden else {})}


@jax.jit
def _embed(tokens: jax.Array, positions: jax.Array, ids: jax.Array) -> jax.Array:
    return tokens[ids].astype(jnp.float32) + positions[: ids.shape[1]].astype(jnp.float32)


@partial(jax.jit, static_argnames="spec")
def _block(spec: CLIPSpec, params: Params, x: jax.Array, mask: ArrayLike) -> jax.Array:
    dtype = product_dtype(params["query"]["kernel"])
    with jax.default_matmul_precision("highest"):  # of float32; bfloat16 is exact as it is
        return Block(spec, dtype).apply({"params": params}, x, mask != 0)  # pyright: ignore[reportReturnType]


@partial(jax.jit, static_argnames="spec")
def _pooled(spec: CLIPSpec, params: Params, x: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
    last: Any = norm(spec).apply({"params": params["norm"]}, x)
    ends = ids if spec.eos_token_id == LARGEST_ID else ids == spec.eos_token_id
    pooled = last[jnp.arange(len(ids)), jnp.argmax(ends, axis=1)]  # (b, d)
    found = {"last": last, "pooled": pooled}
    if "projection" in params:
        layer = Linear(spec.projection_dim, product_dtype(params["projection"]["kernel"]))
        with jax.default_matmul_precision("highest"):
            found["projected"] = layer.apply({"params": params["projection"]}, pooled)  # pyright: ignore
    return found
