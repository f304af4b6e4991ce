"""Linear attention: a feature map in place of the softmax, so that keys and values are summed up once for all queries."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.attention import MHA
from graftax.ops.base import Cost, Operator, Overrides, Params, Shapes, TorchKey, carried, linear_keys
from graftax.ops.hyena import filter_cost
from graftax.ops.hyena_2d import GridFilter
from graftax.spec import OpSpec, Option, Sizes

FEATURES = {"relu": nn.relu, "elu": lambda x: nn.elu(x) + 1, "softmax": nn.softmax}
"""Feature maps phi >= 0: of SANA (arXiv 2410.10629), of Katharopoulos et al. (arXiv 2006.16236, Eq. 7), and over a head's
channels, of SLA (arXiv 2509.24006)."""

EPS = 1e-15
"""Added to the sum of weights, as in SANA: a query whose features are all zero gets zero."""

TAPS = 3
"""Rows and columns that the convolution on the values sees."""


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, placed: tuple[jax.Array, jax.Array] | None = None
) -> jax.Array:
    """q (k^T v) / (q sum k) for every head, over all keys, in memory and time linear in n.

    q (b, n, h, k), k (b, m, h, k), features that are nowhere negative, and v (b, m, h, k) -> (b, n, h, k) in v's type. Sums
    over tokens and what is computed from them are float32 (arXiv 2006.16236, Eq. 5). `placed`: q and k turned to their
    rotary positions, which enter the numerator alone, so that what is divided by stays positive (arXiv 2104.09864, Eq. 19).
    """
    placed_q, placed_k = (q, k) if placed is None else placed
    state = jnp.einsum("bmhk,bmhc->bhkc", placed_k, v, preferred_element_type=jnp.float32)
    total = k.sum(1, dtype=jnp.float32)  # (b, h, k)
    weighted = jnp.einsum("bnhk,bhkc->bnhc", placed_q.astype(jnp.float32), state)
    weights = jnp.einsum("bnhk,bhk->bnh", q.astype(jnp.float32), total)
    return (weighted / (weights[..., None] + EPS)).astype(v.dtype)


def linear_flops(queries: int, keys: int, inner: int, head_dim: int) -> int:
    """FLOPs of `linear_attention` per image, `inner` the channels of all heads together: two products with a (k, k) matrix
    for each head, and the normaliser: the sum of keys, its product with a query, the division."""
    return 2 * (queries + keys) * inner * head_dim + (3 * queries + keys) * inner


def check_feature(op: OpSpec) -> None:
    """Raise `BadInput` where the feature map is none of those that there are."""
    if op.option("feature") not in FEATURES:
        raise BadInput(f"{op.kind} feature: got {op.option('feature')!r}, expected one of {sorted(FEATURES)}")


class LinearAttention(MHA):
    """`linear_attention` of phi(q), phi(k) and v, plus a depthwise 3 x 3 convolution of v over the image's grid.

    Linear attention averages widely; the convolution gives back what is near (FLatten Transformer's rank restoration,
    arXiv 2308.00442). It starts at zero, and sees the image alone where tokens of a text stand before it. No published
    model has it so: in PyTorch files its weights have names of their own, and the feature map is not in the tensors.

    Attributes:
        feature: phi, "relu", "elu" (elu(x) + 1) or "softmax" (over a head's channels).
        conv: whether there is the convolution.
    """

    feature: str = "relu"
    conv: bool = True

    kind = "linear"
    torch_keys = (
        *linear_keys("qkv", "linear_qkv"),
        *linear_keys("proj", "out_proj"),
        TorchKey("local/kernel", "local.weight", "patch"),  # (h k, 1, 3, 3) -> (3, 3, 1, h k)
        TorchKey("local/bias", "local.bias", "same"),
    )

    @property
    def needs_grid(self) -> bool:
        return self.conv

    def setup(self) -> None:
        super().setup()
        if self.conv:
            self.local = GridFilter(self.inner, TAPS, self.sizes.grid, silent=True)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        phi = FEATURES[self.feature]
        out = linear_attention(phi(q), phi(k), v)
        return out + self.nearby(v) if self.conv else out

    def nearby(self, v: jax.Array) -> jax.Array:
        """The convolution of values (b, m + n, h, k), zeros for the m tokens of text before the image."""
        text = v.shape[1] - self.sizes.image
        image = self.local(v[:, text:].reshape(v.shape[0], -1, self.inner))  # (b, n, h k)
        return jnp.pad(image, ((0, 0), (text, 0), (0, 0))).reshape(v.shape)

    def cost(self) -> Cost:
        d, n, inner = self.width, self.tokens, self.inner
        params, convolved = filter_cost(inner, TAPS**2, self.sizes.image) if self.conv else (0, 0)
        return Cost(4 * d * inner + 3 * inner + d + params, self.core(), 8 * n * d * inner + convolved)

    def core(self) -> int:
        """FLOPs of what stands in the softmax's place."""
        return linear_flops(self.tokens, self.tokens, self.inner, self.sizes.head_dim)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections; the convolution of a donor that has it."""
        return carried(fresh, {**weights, **donor.projections(weights)}) if isinstance(donor, MHA) else None

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_feature(op)
        if op.option("conv") and not sizes.image:
            raise BadInput("linear conv: got True where there are no image tokens, expected conv=False")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        conv = "local.weight" in shapes
        if set(shapes) != {key.name for key in cls.torch_keys if conv or not key.name.startswith("local.")}:
            return None
        return {"feature": overrides.get("feature", cls.options()["feature"]), "conv": conv}
