"""What text encoders share: matrix products in the type of the weights, their sums and all else in float32.

With bfloat16 weights the inputs of products are bfloat16 too. Weights of any other type are used in float32: activations of
text encoders exceed what float16 holds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike


class Linear(nn.Module):
    """x W, or x W + b, (.., in) -> (.., features) float32.

    Attributes:
        features: width of the output.
        dtype: in which x and W are multiplied.
        std: of the kernel's first values; None: one over the square root of its inputs.
        bias: whether there is a b.
    """

    features: int
    dtype: DTypeLike
    std: float | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = nn.initializers.normal(x.shape[-1] ** -0.5 if self.std is None else self.std)
        y = product("...i,ij->...j", x, self.param("kernel", first, (x.shape[-1], self.features)), self.dtype)
        if not self.bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(jnp.float32)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: ArrayLike, seen: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """softmax(query key^T + bias) value over the keys that are `seen`, undivided: (b, m, h, k) each -> (b, m, h k) float32.

    bias broadcasts to the logits (b, h, m, m), queries before keys; so does seen, bool.
    """
    b, m = query.shape[:2]
    logits = product("bqhk,bshk->bhqs", query, key, dtype) + bias
    weights = nn.softmax(jnp.where(seen, logits, jnp.finfo(jnp.float32).min))  # (b, h, m, m)
    return product("bhqs,bshk->bqhk", weights, value, dtype).reshape(b, m, -1)


def product(axes: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The einsum of a and b, both as `dtype`, summed in float32."""
    return jnp.einsum(axes, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def product_dtype(kernel: jax.Array) -> DTypeLike:
    """The type in which weights that are stored like `kernel` are multiplied."""
    return jnp.bfloat16 if kernel.dtype == jnp.bfloat16 else jnp.float32
