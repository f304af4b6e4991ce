"""The noising process of improved DDPM as DiT uses it: schedule, respacing, noising, training losses.

Sources: Ho et al. 2020 (arXiv 2006.11239, "DDPM"), Nichol and Dhariwal 2021 (arXiv 2102.09672, "IDDPM"),
Peebles and Xie 2022 (arXiv 2212.09748, "DiT"). A model returns (b, h, w, 2c): c channels of predicted noise,
then c channels that place the log-variance between its two bounds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.objective import PLAIN, Objective
from graftax.diffusion.times import UNIFORM, Times
from graftax.errors import BadInput
from graftax.paths import BETA_END, STEPS, Level, alpha_bars

DATA = -1  # the time of clean data, one before that of step 0
HALF_BIN = 1 / 255  # half the distance between neighbouring 8-bit levels in [-1, 1]


class Tables(NamedTuple):
    """Constants of every kept step, as float64 numpy arrays of shape (kept steps,)."""

    alpha_bar: np.ndarray  # share of the data's variance left after this step
    alpha_bar_prev: np.ndarray  # the same one kept step earlier; 1 before the first
    posterior_variance: np.ndarray  # variance of q(x_{t-1} | x_t, x_0), DDPM Eq. 7
    log_variance_low: np.ndarray  # log of it; step 0, where it is zero, borrows step 1
    log_variance_high: np.ndarray  # log beta


@dataclasses.dataclass(frozen=True)
class Process:
    """A discrete noising process with linear betas over `steps` steps, of which `timesteps` are kept.

    Wherever `t` is an argument it counts kept steps, 0 .. len(process) - 1, larger is noisier; the model must
    be called with the original index, `model_times(t)`. The two are equal until the process is
    respaced. Hashable, so it can be a static argument of `jax.jit`.

    Raises BadInput if `steps` is 20 or less (the last beta would reach 1) or if `timesteps` are not at least
    two strictly increasing indices below `steps`.
    """

    steps: int = 1000
    timesteps: tuple[int, ...] | None = None  # None keeps all

    def __post_init__(self) -> None:
        if self.steps <= STEPS * BETA_END:
            raise BadInput(f"diffusion steps: {self.steps}, expected more than {STEPS * BETA_END:.0f}")
        if self.timesteps is None:
            return
        kept = self.timesteps
        rising = all(a < b for a, b in itertools.pairwise((-1, *kept, self.steps)))
        if len(kept) < 2 or not rising:
            raise BadInput(f"timesteps: {kept}, expected two or more, increasing, in 0..{self.steps - 1}")

    def __len__(self) -> int:
        return self.steps if self.timesteps is None else len(self.timesteps)

    @property
    def timestep_map(self) -> np.ndarray:
        """(len(self),) int32: the original index of every kept step, which is what the model is given."""
        return np.asarray(range(self.steps) if self.timesteps is None else self.timesteps, np.int32)

    def at(self, share: np.ndarray) -> np.ndarray:
        """The kept steps (n,) int32 that lie `share` (0 to below 1) of the way from data to noise."""
        return (np.asarray(share) * len(self)).astype(np.int32)

    def draw(self, key: jax.Array, count: int, times: Times | None = None) -> jax.Array:
        """(count,) int32 kept steps, drawn as `times` says of the way from data to noise; None: evenly."""
        times = times or UNIFORM
        if times.kind == "uniform":
            low, high = (round(end * len(self)) for end in times.numbers)
            return jax.random.randint(key, (count,), min(low, high - 1), high)
        if times.kind == "lognormal":
            return self._nearest(times.draw(key, count))
        steps = jnp.floor(times.draw(key, count) * len(self)).astype(jnp.int32)
        return jnp.minimum(steps, len(self) - 1)

    def _nearest(self, fraction: jax.Array) -> jax.Array:
        """The kept steps (n,) int32 whose sigma / (alpha + sigma) are the first from `fraction` on."""
        sigma, alpha = np.sqrt(1 - self.tables.alpha_bar), np.sqrt(self.tables.alpha_bar)
        found = jnp.searchsorted(jnp.asarray(sigma / (alpha + sigma), jnp.float32), fraction)
        return jnp.minimum(found, len(self) - 1).astype(jnp.int32)

    def earlier(self, t: jax.Array, share: jax.Array) -> jax.Array:
        """Steps (b,) with less noise than `t` by a share (b,) of the process, down to 1: never the first, as in SRA (arXiv
        2505.02831)."""
        return jnp.maximum(t - jnp.floor(share * len(self)).astype(t.dtype), 1)

    def model_times(self, t: jax.Array) -> jax.Array:
        """What a model is called with at kept steps t (b,): their original indices."""
        return jnp.asarray(self.timestep_map)[t]

    def respaced(self, count: int) -> Process:
        """Keep `count` of the original steps, evenly spread from first to last, rounded (IDDPM section 4).

        The betas follow from the kept alpha_bar, so the marginals at kept steps do not change. Raises
        BadInput if `count` is below 2 or above `steps`.
        """
        if not 2 <= count <= self.steps:
            raise BadInput(f"sampling steps: {count}, expected 2..{self.steps}")
        stride = (self.steps - 1) / (count - 1)
        # A running sum, not i * stride: published samplers add, and near .5 the two round differently.
        positions = itertools.accumulate(itertools.repeat(stride, count - 1), initial=0.0)
        return Process(self.steps, tuple(round(position) for position in positions))

    @functools.cached_property
    def _alpha_bars(self) -> np.ndarray:
        """(steps,) float64: alpha_bar of every original step."""
        return alpha_bars(self.steps)

    def alpha_bar_at(self, times: np.ndarray) -> np.ndarray:
        """alpha_bar at `times` (n,), counted in original steps, -1 being the data: (n,) float64.

        Between steps its logarithm is linear, as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927) for discrete processes.
        """
        return np.exp(np.interp(times, np.arange(DATA, self.steps), np.append(0.0, np.log(self._alpha_bars))))

    @functools.cached_property
    def tables(self) -> Tables:
        """The constants of the kept steps; see `Tables`."""
        alpha_bar = self._alpha_bars[self.timestep_map]
        previous = np.append(1.0, alpha_bar[:-1])
        betas = 1 - alpha_bar / previous
        variance = betas * (1 - previous) / (1 - alpha_bar)
        low = np.log(np.append(variance[1], variance[1:]))
        return Tables(alpha_bar, previous, variance, low, np.log(betas))

    def q_sample(self, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        """Noise clean data to step t: x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (DDPM Eq. 4).

        x0, noise: (b, h, w, c); t: (b,) int. Returns (b, h, w, c) float32, NaN where t is not below
        len(self). Raises BadInput on shapes that do not fit.
        """
        _check(x0, t, noise)
        alpha_bar = self.tables.alpha_bar
        x0, noise = x0.astype(jnp.float32), noise.astype(jnp.float32)
        return _at(np.sqrt(alpha_bar), t) * x0 + _at(np.sqrt(1 - alpha_bar), t) * noise

    def training_losses(
        self, model_out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array, objective: Objective = PLAIN
    ) -> dict[str, jax.Array]:
        """The hybrid objective of IDDPM (Eq. 16) in DiT's weighting: loss = mse + vb, mse weighted as `objective` says.

        mse: mean squared error of the predicted noise. vb: this step's term of the variational bound in bits
        per dimension, not rescaled by the number of steps; it trains the variance only, the mean is held
        constant in it.

        model_out: (b, h, w, 2c), the model at (q_sample(x0, t, noise), model_times(t)); x0, noise: (b, h, w,
        c); t: (b,) int. Returns {"mse", "vb", "loss"}, each (b,) float32, one value per sample, NaN where t
        is not below len(self). Raises BadInput on shapes that do not fit.
        """
        _check(x0, t, noise)
        eps, v = split_output(model_out, x0.shape)
        x0, error = x0.astype(jnp.float32), eps - noise.astype(jnp.float32)
        mse = jnp.mean(error**2, axis=(1, 2, 3))  # (b, h, w, c) -> (b,)
        vb = self._bound_term(jax.lax.stop_gradient(error), v, x0, t)
        return {"mse": mse, "vb": vb, "loss": self._weight(objective, t) * mse + vb}

    def _weight(self, objective: Objective, t: jax.Array) -> jax.Array:
        if objective.of_velocities or objective.weighting not in ("none", "min_snr"):
            raise BadInput(f"objective: {objective} of noise at steps of a process, expected 'none' or 'min_snr(GAMMA)'")
        alpha_bar = jnp.take(jnp.asarray(self.tables.alpha_bar, jnp.float32), t, mode="fill")
        return objective.weight("eps", Level(jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)))

    def _bound_term(self, error: jax.Array, v: jax.Array, x0: jax.Array, t: jax.Array) -> jax.Array:
        """Bits per dimension of L_t (KL of the two Gaussians) or, at t = 0, of the decoder: (b,).

        Posterior mean and model mean differ only through the noise they assume (DDPM Eq. 11), so the
        difference is written from `error` directly: no cancellation, and x_t is not needed.
        """
        c = self.tables
        alpha = c.alpha_bar / c.alpha_bar_prev
        shift = _at((1 - alpha) / np.sqrt(alpha * (1 - c.alpha_bar)), t) * error  # posterior - model mean
        low = _at(c.log_variance_low, t)
        log_variance = interpolate(v, low, _at(c.log_variance_high, t))
        kl = 0.5 * (log_variance - low + jnp.expm1(low - log_variance) + shift**2 * jnp.exp(-log_variance))
        nll = -discretized_log_likelihood(x0, shift, 0.5 * log_variance)  # at t = 0 the posterior mean is x0
        nats = jnp.where(t[:, None, None, None] == 0, nll, kl)
        return jnp.mean(nats, axis=(1, 2, 3)) / math.log(2)  # (b, h, w, c) -> (b,)


def interpolate(v: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The learned log-variance: linear, `low` at v = -1 and `high` at v = 1, also beyond (IDDPM Eq. 15)."""
    return low + (v + 1) / 2 * (high - low)


def split_output(model_out: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(b, h, w, 2c) -> predicted noise and variance values, each of `shape` (b, h, w, c), float32.

    Raises BadInput if the model output has any other shape.
    """
    expected = (*shape[:-1], 2 * shape[-1])
    if model_out.shape != expected:
        raise BadInput(f"model output: shape {model_out.shape}, expected {expected}: noise, then variance")
    eps, v = jnp.split(model_out.astype(jnp.float32), 2, axis=-1)
    return eps, v


def discretized_log_likelihood(x: jax.Array, offset: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log-probability (nats) of 8-bit levels x in [-1, 1] under a Gaussian of mean x - offset (DDPM Eq. 13).

    Each level owns the bin halfway to its neighbours, the two outermost own the tails. All arguments and the
    result have one shape. Probabilities below 1e-12 count as 1e-12.
    """
    upper = jnp.where(x > 0.999, 1.0, _normal_cdf((offset + HALF_BIN) * jnp.exp(-log_scale)))
    lower = jnp.where(x < -0.999, 0.0, _normal_cdf((offset - HALF_BIN) * jnp.exp(-log_scale)))
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Normal distribution function in the tanh approximation (Page 1977) that DiT's losses are computed with.

    The tanh is spelled out: XLA's saturates at 8, where a bin still holds 1e-7, and that shows in the loss.
    """
    a = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    tanh = jnp.sign(a) * (1 - 2 * jax.nn.sigmoid(-2 * jnp.abs(a)))
    return 0.5 * (1 + tanh)


def _at(table: np.ndarray, t: jax.Array) -> jax.Array:
    """Entry t of a float64 table as float32, (b,) -> (b, 1, 1, 1); NaN where t is past the end."""
    return jnp.take(jnp.asarray(table, jnp.float32), t, mode="fill")[:, None, None, None]


def _check(x0: jax.Array, t: jax.Array, noise: jax.Array) -> None:
    if x0.ndim != 4 or noise.shape != x0.shape:
        raise BadInput(f"noise: shape {noise.shape}, expected that of the data {x0.shape}, both (b, h, w, c)")
    if t.shape != x0.shape[:1] or not jnp.issubdtype(t.dtype, jnp.integer):
        raise BadInput(f"t: shape {t.shape} {t.dtype}, expected {x0.shape[:1]} of an integer type")
