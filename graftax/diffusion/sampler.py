"""Sampling, step by step (`Steps`) or whole as one `lax.scan` (`denoise`): pure functions, to be jitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.adaptive import adaptive
from graftax.diffusion.guidance import GuidedFn, ModelFn
from graftax.diffusion.noise import unit_noise
from graftax.diffusion.process import interpolate, split_output
from graftax.diffusion.sampling import Sampling, check_variance
from graftax.diffusion.schedule import Step, schedule, step_numbers
from graftax.diffusion.way import VELOCITY, Way, way_for
from graftax.errors import BadInput


class SamplerState(NamedTuple):
    """What one call of the model hands to the next.

    Attributes:
        x: where the model looks: images as they are now (b, h, w, c) float32.
        estimate: what the call before took the clean images to be, or their slope, of the same shape; zeros at first.
        start: where the step began: x, but between the two calls of a step.
    """

    x: jax.Array
    estimate: jax.Array
    start: jax.Array

    @classmethod
    def begin(cls, x: jax.Array) -> SamplerState:
        """Before the first step at x."""
        return cls(x, jnp.zeros_like(x), x)


class Memory:
    """What a network keeps from one call to the next, while its calls are traced: `Steps` puts it in before every call, and
    takes it out behind it.

    Attributes:
        value: what the call before left, a tree of arrays; None before there was one. The network puts its own in the place.
        call: number of this call.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self.call: int | jax.Array = 0


@dataclass(frozen=True)
class Steps:
    """The steps of a sampler, noisiest first.

    Attributes:
        model_fn: see `ModelFn`; called with the times of `schedule(sampling, way)`, and as a fourth argument with the scale
            of guidance where that varies (`sampling.varies`).
        sampling: what is drawn; its guidance is not looked at, `model_fn` has it.
        clip: hold the predicted x0 within [-1, 1], for models of pixels.
        way: that flows are walked along; None: that of a model of velocities on the linear path.
        encode: of models of two stages: x, t, conditions -> what is kept of them, a tree of arrays (b, ...), which
            `model_fn` takes in place of conditions. It runs in the steps `sampling.refresh`.
        memory: that `model_fn` reads and writes.
    """

    model_fn: ModelFn | GuidedFn
    sampling: Sampling
    clip: bool = False
    way: Way | None = None
    encode: Callable[[jax.Array, jax.Array, Any], Any] | None = None
    memory: Memory | None = None

    @property
    def _way(self) -> Way:
        return self.way or way_for(VELOCITY, self.sampling)

    @property
    def numbers(self) -> np.ndarray:
        """(calls,) int: of which step every call is, one by one where the model is called once a step."""
        return step_numbers(self.sampling, self._way)

    def start(self, noise: jax.Array) -> SamplerState:
        """Before the first step: unit Gaussian noise."""
        return SamplerState.begin(noise * self._way.start)

    def __call__(self, call: int | jax.Array, state: SamplerState, cond: Any, noise: jax.Array | None) -> SamplerState:
        """Call number `call` of the model, from `start` or what the call before gave; `noise` (b, h, w, c), its step's, if
        steps add any."""
        step = jax.tree.map(lambda row: row[call], schedule(self.sampling, self._way))
        return self._advance(step, state, cond, noise)

    def scan(self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None) -> jax.Array:
        """All steps as one loop; see `denoise`."""
        if self.sampling.sampler == "dopri5":
            return adaptive(self.model_fn, self.sampling, self._way, self.start(x).x, cond)

        return self._walk(x, cond, keys, step_noise, lambda kept: None)[0]

    def kept(self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None) -> Any:
        """What `model_fn` takes for conditions at every call of `scan`: leaves (calls, b, ...)."""
        return self._walk(x, cond, keys, step_noise, lambda kept: kept)[1]

    def remembered(self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None) -> Any:
        """What `memory` holds after the last call of `scan`."""
        return self._walk(x, cond, keys, step_noise, lambda kept: None)[2]

    def _walk(
        self, x: jax.Array, cond: Any, keys: jax.Array | None, step_noise: jax.Array | None, note: Callable[[Any], Any]
    ) -> tuple[jax.Array, Any, Any]:
        def body(carry: tuple[SamplerState, Any, Any], inputs: tuple[jax.Array, Step]) -> tuple[Any, Any]:
            (state, kept, left), (i, step) = carry, inputs
            noise = None
            if self.sampling.noisy:
                noise = step_noise[i] if step_noise is not None else unit_noise(_known(keys), i, x.shape[1:])
            if self.encode is not None:
                run = jnp.isin(i, jnp.array(self.sampling.refresh))
                t = jnp.full(x.shape[:1], step.timestep)
                kept = jax.lax.cond(run, self.encode, lambda *_: kept, state.x, t, cond)
            state, left = self._remembering(i, left, lambda: self._advance(step, state, kept, noise))
            return (state, kept, left), note(kept)

        steps, state, kept = schedule(self.sampling, self._way), self.start(x), cond
        if self.encode is not None:
            shapes = jax.eval_shape(self.encode, x, jnp.zeros(x.shape[:1]), cond)
            kept = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        numbers = jnp.arange(self.sampling.steps) if steps.number is None else steps.number
        (state, _, left), noted = jax.lax.scan(body, (state, kept, self._blank(steps, state, kept)), (numbers, steps))
        return state.x, noted, left

    def _remembering(
        self, call: int | jax.Array, left: Any, advance: Callable[[], SamplerState]
    ) -> tuple[SamplerState, Any]:
        """A call with the memory of the one before, and what it leaves."""
        if self.memory is None:
            return advance(), None
        self.memory.value, self.memory.call = left, call
        return advance(), self.memory.value

    def _blank(self, steps: Step, state: SamplerState, kept: Any) -> Any:
        """Zeros in the shapes of what a call leaves; to know them costs tracing a call."""
        if self.memory is None:
            return None
        first = jax.tree.map(lambda row: row[0], steps)
        noise = jnp.zeros_like(state.x)
        shapes = jax.eval_shape(lambda: self._remembering(0, None, lambda: self._advance(first, state, kept, noise))[1])
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def _advance(self, step: Step, state: SamplerState, cond: Any, noise: jax.Array | None) -> SamplerState:
        x, start = state.x, state.start
        if step.lift is not None:
            lift = step.lift * _known(noise).astype(x.dtype)
            x, start = x + lift, start + lift
        scale = () if step.guidance is None else (step.guidance,)
        out, v = _split(self.model_fn(x, jnp.full(x.shape[:1], step.timestep), cond, *scale), x)
        estimate = step.x_scale * x - step.out_scale * out
        if self.clip:
            estimate = jnp.clip(estimate, -1, 1)
        following = step.x0_weight * estimate + step.x_weight * start
        if step.before_weight is not None:
            following += step.before_weight * state.estimate
        if step.std is not None:
            following += _std(step, v) * _known(noise).astype(x.dtype)
        return SamplerState(following, estimate, following if step.ends is None else jnp.where(step.ends, following, start))


def _known(noise: jax.Array | None) -> jax.Array:
    """Noise, or its keys, which `denoise` has checked to be there."""
    assert noise is not None, "steps of this sampler add noise"
    return noise


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
    model_fn: ModelFn | GuidedFn, sampling: Sampling, x_init: jax.Array, cond: Any, keys: jax.Array | None = None,
    step_noise: jax.Array | None = None, *, clip: bool = False, way: Way | None = None,
) -> jax.Array:  # fmt: skip
    """Denoise `x_init` through all steps of `sampling`, in float32.

    "ddpm": ancestral sampling with the learned variance (DDPM Algorithm 2, IDDPM Eq. 15). "ddim": Song et al.
    2020 (arXiv 2010.02502) Eq. 12 with sigma of Eq. 16 scaled by `eta` in [0, 1]; 0 is deterministic, and 1
    has DDPM's mean. No noise is added at the last step of either. "dpmpp_2m": DPM-Solver++ of second order, multistep, in
    its midpoint form, and "sde_dpmpp_2m": its SDE form (Lu et al. 2022, arXiv 2211.01095), as diffusers'
    DPMSolverMultistepScheduler computes them with the settings that PixArt publishes. "euler": x + (s' - s) v, as
    diffusers' FlowMatchEulerDiscreteScheduler computes it; the others of flows as SiT's code (`graftax.diffusion.walk`).
    `model_fn` then takes times s of the path and gives velocities v, dx / ds; for "edm_heun" it takes sigmas and gives x0.

    x_init: (b, h, w, c), unit Gaussian noise; cond: conditions, a tree of arrays (b, ...). step_noise: (steps, b, h, w, c)
    with step 0 the noisiest, unit Gaussian; if None, step i draws `unit_noise(keys, i, ...)` of one key for each image,
    keys (b,). Deterministic samplers use neither. `model_fn` and `clip` as in `Steps`; `way`: along which flows are walked,
    None: the linear path from 1 to 0. Returns (b, h, w, c) float32. Pure and traceable: sampling, way and clip are static.

    Raises BadInput on shapes that do not fit, on noise that is needed but has neither keys nor array, on "ddpm" where
    the model has no variance channels, and on steps that are not finite.
    """
    _check(sampling, x_init, keys, step_noise)
    return Steps(model_fn, sampling, clip, way).scan(x_init.astype(jnp.float32), cond, keys, step_noise)


def _check(sampling: Sampling, x_init: jax.Array, keys: jax.Array | None, step_noise: jax.Array | None) -> None:
    if x_init.ndim != 4:
        raise BadInput(f"x_init: shape {x_init.shape}, expected (b, h, w, c)")
    if step_noise is not None and step_noise.shape != (sampling.steps, *x_init.shape):
        raise BadInput(f"step_noise: shape {step_noise.shape}, expected {(sampling.steps, *x_init.shape)}")
    if keys is not None and keys.shape != x_init.shape[:1]:
        raise BadInput(f"keys: shape {keys.shape}, expected one for each of {x_init.shape[0]} images")
    if sampling.noisy and keys is None and step_noise is None:
        raise BadInput(f"noise of {sampling}: neither keys nor step_noise given, expected one of them")
