"""Dormand and Prince's method of fifth order with steps of its own choice, by diffrax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from graftax.diffusion.guidance import GuidedFn, ModelFn
from graftax.diffusion.sampling import Sampling
from graftax.diffusion.schedule import inside
from graftax.diffusion.way import Way
from graftax.errors import BadInput
from graftax.paths import level

MOST_STEPS = 4096


def adaptive(model_fn: ModelFn | GuidedFn, sampling: Sampling, way: Way, x: jax.Array, cond: Any) -> jax.Array:
    """x (b, h, w, c) at `way.most` along its velocity to `way.least`, all images in the same steps; NaN where `MOST_STEPS`
    do not do. Raises `BadInput` where diffrax is not installed."""
    try:
        import diffrax
    except ImportError:
        raise BadInput("sampler 'dopri5': diffrax is not installed, expected it (pip install graftax[ode])") from None

    def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
        scale = (_scale(sampling, way, t),) if sampling.varies else ()
        return model_fn(x, jnp.full(x.shape[:1], t, x.dtype), cond, *scale).astype(x.dtype)

    relative, absolute = sampling.tolerance
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity), diffrax.Dopri5(), t0=way.most, t1=way.least, dt0=None, y0=x,
        stepsize_controller=diffrax.PIDController(rtol=relative, atol=absolute), max_steps=MOST_STEPS, throw=False,
    )  # fmt: skip
    assert found.ys is not None, "the end is saved"
    return jnp.where(found.result == diffrax.RESULTS.successful, found.ys[0], jnp.nan)


def _scale(sampling: Sampling, way: Way, t: jax.Array) -> jax.Array:
    assert sampling.interval is not None, "all that varies here"
    at = level(way.path, t)
    return jnp.where(inside(sampling.interval, at.sigma / at.alpha), sampling.cfg_scale, 1.0)
