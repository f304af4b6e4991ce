"""`OptimiserConfig`: AdamW behind global-norm clipping, with linear warm-up, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from graftax.errors import BadInput

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bias correction, clipping and a learning-rate schedule.

    The defaults are the grafting paper's second stage (arXiv 2506.05340): 1e-4 after 1000 steps of linear warm-up, then
    constant, no weight decay, gradients clipped to global norm 10. Raises BadInput on values that make no optimiser.

    Attributes:
        learning_rate: after warm-up.
        warmup_steps: update k = 0, 1, .. uses learning_rate * (k + 1) / warmup_steps until that reaches 1.
        schedule: "constant", or "cosine": down to 0 at update `decay_steps`.
        decay_steps: of the cosine, counted from the first update.
        halve_at: after every number of updates in it the rate is half of what the schedule says, then a quarter, and so on.
        weight_decay: acts on every trained leaf, biases too, as PyTorch's AdamW does.
        grad_clip: largest global norm of a gradient, None for no clipping.
        b1: decay of AdamW's first moment.
        b2: of its second.
        eps: AdamW's.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    schedule: str = "constant"
    decay_steps: int | None = None
    halve_at: tuple[int, ...] = ()
    weight_decay: float = 0.0
    grad_clip: float | None = 10.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        self._require(self.learning_rate > 0, "learning_rate", "a positive number")
        self._require(self.warmup_steps >= 0, "warmup_steps", "0 or more")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        cosine = self.schedule == "cosine"
        fits = (self.decay_steps or 0) > self.warmup_steps if cosine else self.decay_steps is None
        self._require(fits, "decay_steps", "more than warmup_steps" if cosine else "None for a constant schedule")
        self._require(all(count > 0 for count in self.halve_at), "halve_at", "numbers of updates, 1 or more")
        self._require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self._require(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "a positive number or None")
        self._require(0 <= self.b1 < 1, "b1", "a number in [0, 1)")
        self._require(0 <= self.b2 < 1, "b2", "a number in [0, 1)")
        self._require(self.eps > 0, "eps", "a positive number")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise BadInput(f"OptimiserConfig.{name}: got {getattr(self, name)!r}, expected {expected}")

    def rate(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Learning rate of the update that follows `count` earlier ones: () int -> () float32."""
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1) / max(self.warmup_steps, 1))
        peak = self.learning_rate * 0.5 ** sum(count >= updates for updates in self.halve_at)
        if self.schedule == "constant":
            return peak * warm
        span = (self.decay_steps or 0) - self.warmup_steps
        part = jnp.clip((count - self.warmup_steps) / span, 0.0, 1.0)
        return peak * warm * 0.5 * (1 + jnp.cos(jnp.pi * part))

    def build(self) -> optax.GradientTransformationExtraArgs:
        """The optax chain: clip by global norm, then AdamW at `rate`. `update` may be told the gradient's `norm`."""
        adamw = optax.adamw(self.rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay)
        return optax.with_extra_args_support(adamw) if self.grad_clip is None else optax.chain(_clip(self.grad_clip), adamw)


def _clip(largest: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` that may be told the `norm` (), which a step that logs it knows already."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, *,
        norm: jax.Array | None = None, **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:  # fmt: skip
        known = optax.tree.norm(updates) if norm is None else norm
        return jax.tree.map(lambda g: jnp.where(known < largest, g, g / known.astype(g.dtype) * largest), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
