"""Dispersive loss: what a block makes of different images is pushed apart, without targets, heads and parameters.

Source: Wang and He 2025 (arXiv 2506.09027), with its Table 1 for the forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.errors import BadInput, did_you_mean
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.spec_checks import check_count, check_number
from graftax.train.recipes.alignment import normalised
from graftax.train.recipes.base import Seen, check_block, check_weight


def infonce_l2(z: jax.Array, tau: float) -> jax.Array:
    """log of the mean of exp(-|z_i - z_j|^2 / (c tau)) over all ordered pairs of a group, i = j among them."""
    return jnp.log(jnp.mean(jnp.exp(-distances(z) / tau), axis=(1, 2)))


def infonce_cosine(z: jax.Array, tau: float) -> jax.Array:
    """log of the mean of exp((cos(z_i, z_j) - 1) / tau)."""
    u = normalised(z)
    return jnp.log(jnp.mean(jnp.exp((_products(u) - 1) / tau), axis=(1, 2)))


def hinge(z: jax.Array, tau: float) -> jax.Array:
    """Mean of max(0, tau - |z_i - z_j|^2 / c)^2: `tau` is how far apart is far enough."""
    return jnp.mean(jnp.maximum(tau - distances(z), 0) ** 2, axis=(1, 2))


def covariance(z: jax.Array, tau: float) -> jax.Array:
    """Sum of the squared covariances of different channels over the group, `tau` without effect.

    With C = Z^T Z / (g - 1) of centred rows the sum of all squares is that of (Z Z^T) / (g - 1): no (c, c) is made."""
    z = z.astype(jnp.float32) - z.mean(1, keepdims=True)
    share = z.shape[1] - 1
    every = jnp.sum((_products(z) / share) ** 2, axis=(1, 2))
    return every - jnp.sum((jnp.sum(z**2, axis=1) / share) ** 2, axis=1)


FORMS = {"infonce_l2": infonce_l2, "infonce_cosine": infonce_cosine, "hinge": hinge, "covariance": covariance}
"""From groups of vectors (groups, g, c) to a number for each group."""


def distances(z: jax.Array) -> jax.Array:
    """|z_i - z_j|^2 / c of vectors (groups, g, c): (groups, g, g) float32, 0 where i = j."""
    z = z.astype(jnp.float32)
    squares = jnp.sum(z**2, axis=-1)
    apart = squares[:, :, None] + squares[:, None] - 2 * _products(z)
    others = 1 - jnp.eye(z.shape[1])
    return jnp.maximum(apart, 0) * others / z.shape[-1]


def _products(z: jax.Array) -> jax.Array:
    """(groups, g, c) -> (groups, g, g)."""
    return jnp.einsum("gic,gjc->gij", z, z, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Dispersive:
    """The loss of a block's image tokens, flattened, over groups of neighbours in the batch: their mean.

    The value depends on the size of a group (it cannot fall below about -log of it), so that is said, and never taken from
    the number of devices. Raises `BadInput` on values that are none.

    Attributes:
        block: tokens are those after so many blocks (JAX release: a quarter of the depth; PyTorch release: the last).
        form: one of `FORMS`.
        tau: temperature, or margin of "hinge".
        group: images of one.
        weight: in the sum of losses (0.5, and 0.25 with tau 1 in the PyTorch release).
    """

    block: int
    form: str = "infonce_l2"
    tau: float = 0.5
    group: int = 16
    weight: float = 0.5

    name = "dispersive"
    sees_run = False

    def __post_init__(self) -> None:
        check_count(self.block, "dispersive block")
        check_count(self.group, "dispersive group", least=2)
        check_weight("dispersive", self.weight, None)
        check_number(self.tau, "dispersive tau")
        if self.tau <= 0:
            raise BadInput(f"dispersive tau: got {self.tau}, expected a positive number")
        if self.form not in FORMS:
            near = did_you_mean(str(self.form), FORMS)
            raise BadInput(f"dispersive form: got {self.form!r}, expected one of {tuple(FORMS)}{near}")

    def arrays(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}

    def check(self, spec: ModelSpec, size: int) -> None:
        """Raise `BadInput` where the model has not as many blocks, or groups do not divide a batch."""
        check_block(str(self), self.block, spec)
        if size % self.group:
            raise BadInput(f"{self}: groups of {self.group} do not divide {size} images, a batch or a piece of one")

    def init(self, spec: ModelSpec, key: jax.Array) -> Params:
        """It has no head."""
        return {}

    def draw(self, key: jax.Array, count: int) -> dict[str, jax.Array]:
        """Nothing."""
        return {}

    def value(self, head: Params, seen: Seen) -> jax.Array:
        """The loss ()."""
        tokens = seen.tokens[self.block - 1]["img"]
        groups = tokens.reshape(-1, self.group, tokens[0].size)  # (b, n, d) -> (b / g, g, n d)
        return jnp.mean(FORMS[self.form](groups, self.tau))

    def factor(self, step: jax.Array) -> float:
        """Its weight."""
        return self.weight

    def __str__(self) -> str:
        return f"dispersive({self.block}, {self.form}, tau={self.tau}, group={self.group}, weight={self.weight})"
