"""Norms of tokens: the ones before a DiT's mixers, without parameters of their own since adaLN brings scale and shift."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, Overrides, Params, Shapes, TorchKey, call, carried
from graftax.spec import OpSpec, Option, Sizes


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm (Ba et al., arXiv 1607.06450) without parameters over the last axis, in float32."""
    return _normalised(x.astype(jnp.float32), eps, True)


def rms_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32 (Zhang and Sennrich, arXiv 1910.07467, without a gain)."""
    return _normalised(x.astype(jnp.float32), eps, False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _normalised(x: jax.Array, eps: float, centred: bool) -> jax.Array:
    return _with_factor(x, eps, centred)[0]


@_normalised.defjvp
def _normalised_jvp(
    eps: float, centred: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """A rule of its own keeps two arrays for the way back where autodiff keeps four."""
    (x,), (dx,) = primals, tangents
    y, factor = _with_factor(x, eps, centred)
    # One path in, so that on the way back the parts of this gradient are added up before they join the residual stream's.
    # Joining one by one, they make XLA:CPU compute the whole stream anew for every weight gradient of an unrolled stack.
    dx = 1.0 * dx
    dy = dx - y * (y * dx).mean(-1, keepdims=True)
    return y, (dy - dx.mean(-1, keepdims=True) if centred else dy) * factor


def _with_factor(x: jax.Array, eps: float, centred: bool) -> tuple[jax.Array, jax.Array]:
    """The normalised x (..., d), and what it was multiplied by (..., 1)."""
    x = x - x.mean(-1, keepdims=True) if centred else x
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    return x * factor, factor


class Norm(Operator):
    """Base of norms: x (b, n, d) -> (b, n, d) float32."""

    role = "norm"
    readout = ""
    regression_loss = "l2"
    default_init = "transplant"

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another norm's scale and bias as far as there is a place for them."""
        return carried(fresh, weights) if isinstance(donor, Norm) else None

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if op.option("eps", 1.0) <= 0:
            raise BadInput(f"{cls.kind} eps: got {op.option('eps')}, expected a positive number")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        names = {key.name for key in cls.torch_keys}
        return {"affine": bool(shapes)} if set(shapes) in (names, set()) else None


class _Scaled(Norm):
    """What both norms below have in common."""

    affine: bool = False
    eps: float = 1e-6

    def start(self, donor: Operator) -> str:
        alike = isinstance(donor, _Scaled) and donor.kind == self.kind and donor.eps == self.eps
        return KEPT if alike and self.affine >= donor.affine else CHANGED

    def gains(self, weights: Params, x: Any, wanted: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Its scale, from inputs and outputs of the norm that it stands in for."""
        if not self.affine:
            return {}
        normed = call(self.clone(affine=False), {}, x)
        return {"scale": (normed, wanted - weights.get("bias", 0.0))}


class LayerNorm(_Scaled):
    """Mean 0 and variance 1 over the channels; with `affine` times a scale that starts at 1, plus a bias from 0."""

    kind = "layer_norm"
    torch_keys = (TorchKey("scale", "weight", "same"), TorchKey("bias", "bias", "same"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layer_norm(x, self.eps)
        if not self.affine:
            return x
        scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        return x * scale + self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)

    def cost(self) -> Cost:
        return Cost(2 * self.width * self.affine, 0)


class RMSNorm(_Scaled):
    """Root mean square 1 over the channels; with `affine` times a scale that starts at 1."""

    kind = "rms_norm"
    torch_keys = (TorchKey("scale", "weight", "same"),)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = rms_norm(x, self.eps)
        return x * self.param("scale", nn.initializers.ones, (self.width,), jnp.float32) if self.affine else x

    def cost(self) -> Cost:
        return Cost(self.width * self.affine, 0)
