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

FEATURES = {"relu": nn.relu, "elu": lambda x: nn.elu(x) + 1}
"""Feature maps phi >= 0: of SANA (arXiv 2410.10629), and of Katharopoulos et al. (arXiv 2006.16236, Eq. 7)."""

EPS = 1e-15
"""Added to the sum of weights, as in SANA: a query whose features are all zero gets zero."""

TAPS = 3
"""Rows and columns that the convolution on the values sees."""


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q (k^T v) / (q sum k) for every head, over all keys, in memory and time linear in n.

    q, k (b, n, h, k), features that are nowhere negative, and v (b, n, h, k) -> (b, n, h, k) in v's type. Sums over tokens
    and what is computed from them are float32 (arXiv 2006.16236, Eq. 5).
    """
    state = jnp.einsum("bmhk,bmhc->bhkc", k, v, preferred_element_type=jnp.float32)
    total = k.sum(1, dtype=jnp.float32)  # (b, h, k)
    q = q.astype(jnp.float32)
    weighted, weights = jnp.einsum("bnhk,bhkc->bnhc", q, state), jnp.einsum("bnhk,bhk->bnh", q, total)
    return (weighted / (weights[..., None] + EPS)).astype(v.dtype)


class LinearAttention(MHA):
    """`linear_attention` of phi(q), phi(k) and v, plus a depthwise 3 x 3 convolution of v over the image's grid.

    Linear attention averages widely; the convolution gives back what is near (FLatten Transformer's rank restoration,
    arXiv 2308.00442). It starts at zero, and sees the image alone where tokens of a text stand before it. No published
    model has it so: in PyTorch files its weights have names of their own, and the feature map is not in the tensors.

    Attributes:
        feature: phi, "relu" or "elu" (elu(x) + 1).
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
        # Two products with a (k, k) matrix for each head, and the normaliser: the sum of keys, its product, the division.
        core = 4 * n * inner * self.sizes.head_dim + 4 * n * inner
        params, convolved = filter_cost(inner, TAPS**2, self.sizes.image) if self.conv else (0, 0)
        return Cost(4 * d * inner + 3 * inner + d + params, core, 8 * n * d * inner + convolved)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections; the convolution of a donor that has it."""
        return carried(fresh, weights) if isinstance(donor, MHA) else None

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if op.option("feature") not in FEATURES:
            raise BadInput(f"linear feature: got {op.option('feature')!r}, expected one of {sorted(FEATURES)}")
        if op.option("conv") and not sizes.image:
            raise BadInput("linear conv: got True where there are no image tokens, expected conv=False")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        conv = "local.weight" in shapes
        if set(shapes) != {key.name for key in cls.torch_keys if conv or not key.name.startswith("local.")}:
            return None
        return {"feature": overrides.get("feature", cls.options()["feature"]), "conv": conv}
