"""Sampling, step by step (`Steps`) or whole as one `lax.scan` (`denoise`): pure functions, to be jitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from graftax.diffusion.guidance import ModelFn
from graftax.diffusion.process import interpolate, split_output
from graftax.diffusion.sampling import Sampling, check_variance, unit_noise
from graftax.diffusion.schedule import Step, schedule
from graftax.errors import BadInput


class SamplerState(NamedTuple):
    """What one step hands to the next.

    Attributes:
        x: images as they are now (b, h, w, c) float32.
        x0: what the step before took the clean images to be, of the same shape; zeros before the first.
    """

    x: jax.Array
    x0: jax.Array

    @classmethod
    def start(cls, x: jax.Array) -> SamplerState:
        """Before the first step: unit Gaussian noise x."""
        return cls(x, jnp.zeros_like(x))


@dataclass(frozen=True)
class Steps:
    """The steps of a sampler, noisiest first.

    Attributes:
        model_fn: see `ModelFn`; called with the times `sampling.timesteps`.
        sampling: what is drawn; its guidance is not looked at, `model_fn` has it.
        clip: hold the predicted x0 within [-1, 1], for models of pixels.
    """

    model_fn: ModelFn
    sampling: Sampling
    clip: bool = False

    def __call__(self, number: int | jax.Array, state: SamplerState, cond: Any, noise: jax.Array | None) -> SamplerState:
        """Step `number`, from `SamplerState.start` or what the step before gave; `noise` (b, h, w, c) if steps add any."""
        step = jax.tree.map(lambda row: row[number], schedule(self.sampling))
        return self._advance(step, state, cond, noise)

    def scan(self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None) -> jax.Array:
        """All steps as one loop; see `denoise`."""

        def body(state: SamplerState, inputs: tuple[jax.Array, Step, jax.Array | None]) -> tuple[SamplerState, None]:
            i, step, noise = inputs
            if noise is None and self.sampling.noisy:
                assert keys is not None, "checked by denoise"
                noise = unit_noise(keys, i, x.shape[1:])
            return self._advance(step, state, cond, noise), None

        inputs = (jnp.arange(self.sampling.steps), schedule(self.sampling), step_noise)
        return jax.lax.scan(body, SamplerState.start(x), inputs)[0].x

    def _advance(self, step: Step, state: SamplerState, cond: Any, noise: jax.Array | None) -> SamplerState:
        x = state.x
        out, v = _split(self.model_fn(x, jnp.full(x.shape[:1], step.timestep), cond), x)
        x0 = step.x_scale * x - step.out_scale * out
        if self.clip:
            x0 = jnp.clip(x0, -1, 1)
        x_next = step.x0_weight * x0 + step.x_weight * x
        if step.before_weight is not None:
            x_next += step.before_weight * state.x0
        if step.std is not None:
            assert noise is not None, "steps of this sampler add noise"
            x_next += _std(step, v) * noise.astype(x.dtype)
        return SamplerState(x_next, x0)


def _split(model_out: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Noise or velocity (b, h, w, c) float32, and variance values of the same shape where the model learned any."""
    return (model_out.astype(jnp.float32), None) if model_out.shape == x.shape else split_output(model_out, x.shape)


def _std(step: Step, v: jax.Array | None) -> jax.Array:
    """Deviation of the noise: the schedule's, where it has bounds for the variance times the learned one (b, h, w, c)."""
    assert step.std is not None
    if step.log_variance_low is None or step.log_variance_high is None:
        return step.std
    check_variance("ddpm", v is not None)
    assert v is not None, "just checked"
    return step.std * jnp.exp(0.5 * interpolate(v, step.log_variance_low, step.log_variance_high))


def denoise(
    model_fn: ModelFn, sampling: Sampling, x_init: jax.Array, cond: Any, keys: jax.Array | None = None,
    step_noise: jax.Array | None = None, *, clip: bool = False,
) -> jax.Array:  # fmt: skip
    """Denoise `x_init` through all steps of `sampling`, in float32.

    "ddpm": ancestral sampling with the learned variance (DDPM Algorithm 2, IDDPM Eq. 15). "ddim": Song et al.
    2020 (arXiv 2010.02502) Eq. 12 with sigma of Eq. 16 scaled by `eta` in [0, 1]; 0 is deterministic, and 1
    has DDPM's mean. No noise is added at the last step of either. "dpmpp_2m": DPM-Solver++ of second order, multistep, in
    its midpoint form, and "sde_dpmpp_2m": its SDE form (Lu et al. 2022, arXiv 2211.01095), as diffusers'
    DPMSolverMultistepScheduler computes them with the settings that PixArt publishes. "euler": the straight path of a flow,
    x + (s' - s) v, as diffusers' FlowMatchEulerDiscreteScheduler computes it; `model_fn` then takes noise fractions s and
    gives velocities v, noise - x0.

    x_init: (b, h, w, c), unit Gaussian noise; cond: conditions, a tree of arrays (b, ...). step_noise: (steps, b, h, w, c)
    with step 0 the noisiest, unit Gaussian; if None, step i draws `unit_noise(keys, i, ...)` of one key for each image,
    keys (b,). Deterministic samplers use neither. `model_fn` and `clip` as in `Steps`. Returns (b, h, w, c) float32. Pure
    and traceable: sampling and clip are static.

    Raises BadInput on shapes that do not fit, on noise that is needed but has neither keys nor array, and on "ddpm" where
    the model has no variance channels.
    """
    _check(sampling, x_init, keys, step_noise)
    return Steps(model_fn, sampling, clip).scan(x_init.astype(jnp.float32), cond, keys, step_noise)


def _check(sampling: Sampling, x_init: jax.Array, keys: jax.Array | None, step_noise: jax.Array | None) -> None:
    if x_init.ndim != 4:
        raise BadInput(f"x_init: shape {x_init.shape}, expected (b, h, w, c)")
    if step_noise is not None and step_noise.shape != (sampling.steps, *x_init.shape):
        raise BadInput(f"step_noise: shape {step_noise.shape}, expected {(sampling.steps, *x_init.shape)}")
    if keys is not None and keys.shape != x_init.shape[:1]:
        raise BadInput(f"keys: shape {keys.shape}, expected one for each of {x_init.shape[0]} images")
    if sampling.noisy and keys is None and step_noise is None:
        raise BadInput(f"noise of {sampling}: neither keys nor step_noise given, expected one of them")
