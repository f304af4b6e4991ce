"""The noising process: schedule identities, respacing, noising and losses against independent formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import Process
from graftax.diffusion.process import discretized_log_likelihood
from graftax.errors import BadInput

SHAPE = (4, 3, 2, 2)  # (b, h, w, c)
T = jnp.array([1, 30, 500, 999])


def batch(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x0, noise and a wrong model output."""
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    model_out = jax.random.normal(c, (*SHAPE[:-1], 2 * SHAPE[-1]))
    return jax.random.normal(a, SHAPE), jax.random.normal(b, SHAPE), model_out


def test_linear_betas_end_where_dit_says():
    tables = Process().tables
    betas = np.exp(tables.log_variance_high)
    np.testing.assert_allclose(betas, 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999, rtol=1e-12)
    np.testing.assert_allclose(tables.alpha_bar, np.cumprod(1 - betas), rtol=1e-12)


def test_betas_scale_with_the_number_of_steps():
    betas = np.exp(Process(100).tables.log_variance_high)
    np.testing.assert_allclose(betas[[0, -1]], [1e-3, 0.2], rtol=1e-12)


@pytest.mark.parametrize("process", [Process(), Process().respaced(10), Process(50)])
def test_posterior_variance_is_that_of_the_product_of_gaussians(process):
    # Precisions add: that of q(x_t | x_{t-1}) seen from x_{t-1}, and that of q(x_{t-1} | x_0).
    c = process.tables
    alpha = c.alpha_bar / c.alpha_bar_prev
    precision = alpha[1:] / (1 - alpha[1:]) + 1 / (1 - c.alpha_bar_prev[1:])
    np.testing.assert_allclose(c.posterior_variance[1:], 1 / precision, rtol=1e-10)
    assert c.posterior_variance[0] == 0
    np.testing.assert_allclose(np.exp(c.log_variance_low), c.posterior_variance[[1, *range(1, len(process))]])


@pytest.mark.parametrize("count", [2, 7, 10, 250, 999, 1000])
def test_respacing_keeps_alpha_bar_and_both_ends(count):
    full, short = Process(), Process().respaced(count)
    kept = short.timestep_map
    assert len(short) == len(kept) == count
    assert kept[0] == 0
    assert kept[-1] == 999
    assert np.ptp(np.diff(kept)) <= 1
    np.testing.assert_array_equal(short.tables.alpha_bar, full.tables.alpha_bar[kept])
    betas = np.exp(short.tables.log_variance_high)
    np.testing.assert_allclose(np.cumprod(1 - betas), full.tables.alpha_bar[kept], rtol=1e-9)


def test_respacing_rounds_like_the_published_sampler():
    assert Process().respaced(3).timesteps == (0, 500, 999)  # 499.5, exactly: rounds to even
    # 499.5 again, but the sum of ten strides of 49.95 comes out just below it.
    assert Process().respaced(21).timestep_map[9:12].tolist() == [450, 499, 549]
    assert Process().respaced(250).timestep_map[:6].tolist() == [0, 4, 8, 12, 16, 20]


def test_respacing_starts_from_the_original_steps():
    assert Process().respaced(100).respaced(10) == Process().respaced(10)


def test_process_is_a_static_argument():
    noise = jax.jit(Process.q_sample, static_argnums=0)
    x0, eps, _ = batch(0)
    np.testing.assert_allclose(noise(Process(), x0, T, eps), Process().q_sample(x0, T, eps), rtol=1e-6)
    assert hash(Process().respaced(10)) == hash(Process().respaced(10))


def test_q_sample_has_the_marginal_variance():
    x0, eps, _ = batch(1)
    a = Process().tables.alpha_bar[np.asarray(T)].reshape(-1, 1, 1, 1)
    expected = np.sqrt(a) * np.asarray(x0) + np.sqrt(1 - a) * np.asarray(eps)
    np.testing.assert_allclose(Process().q_sample(x0, T, eps), expected, atol=1e-6)


def bound_term(process: Process, model_out, x0, t, noise) -> np.ndarray:
    """KL of posterior and model in bits per dimension, t > 0, float64, from the means themselves."""
    c, x0, noise = process.tables, np.asarray(x0, np.float64), np.asarray(noise, np.float64)
    tables = (c.alpha_bar, c.alpha_bar_prev, c.log_variance_low, c.log_variance_high)
    a, prev, low, high = (table[t].reshape(-1, 1, 1, 1) for table in tables)
    eps, v = np.split(np.asarray(model_out, np.float64), 2, axis=-1)
    x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
    alpha = a / prev

    def mean(x):
        return ((1 - alpha) * np.sqrt(prev) * x + (1 - prev) * np.sqrt(alpha) * x_t) / (1 - a)

    log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
    distance = (mean(x0) - mean((x_t - np.sqrt(1 - a) * eps) / np.sqrt(a))) ** 2
    kl = 0.5 * (log_variance - low - 1 + (np.exp(low) + distance) / np.exp(log_variance))
    return kl.mean((1, 2, 3)) / np.log(2)


@pytest.mark.parametrize("process", [Process(), Process(2000, tuple(range(0, 2000, 2)))])
def test_losses_equal_their_definition(process):
    x0, eps, out = batch(2)
    losses = process.training_losses(out, x0, T, eps)
    mse = np.mean((np.asarray(out)[..., :2] - np.asarray(eps)) ** 2, axis=(1, 2, 3))
    vb = bound_term(process, out, x0, np.asarray(T), eps)
    np.testing.assert_allclose(losses["mse"], mse, rtol=1e-5)
    np.testing.assert_allclose(losses["vb"], vb, rtol=1e-5)
    np.testing.assert_allclose(losses["loss"], mse + vb, rtol=1e-5)
    assert all(value.shape == (4,) and value.dtype == jnp.float32 for value in losses.values())


def test_perfect_model_has_no_loss():
    x0, eps, _ = batch(3)
    out = jnp.concatenate([eps, -jnp.ones_like(eps)], axis=-1)  # true noise, lowest variance
    losses = Process().training_losses(out, x0, T, eps)
    np.testing.assert_array_equal(losses["loss"], 0)


def test_bound_trains_the_variance_only():
    x0, eps, out = batch(4)
    t = jnp.array([0, 1, 500, 999])  # both the decoder and the KL branch

    def total(name: str):
        return jax.grad(lambda o: Process().training_losses(o, x0, t, eps)[name].sum())(out)

    vb, mse = total("vb"), total("mse")
    np.testing.assert_array_equal(vb[..., :2], 0)
    np.testing.assert_array_equal(mse[..., 2:], 0)
    for used in (vb[..., 2:], mse[..., :2]):
        assert jnp.abs(used).sum((1, 2, 3)).min() > 0  # in every sample
    np.testing.assert_allclose(total("loss"), vb + mse, atol=1e-7)


@pytest.mark.parametrize("log_scale", [-4.0, -1.0, 1.0])
def test_discretized_likelihood_sums_to_one_over_all_levels(log_scale):
    levels = jnp.linspace(-1, 1, 256)
    log_p = discretized_log_likelihood(levels, levels - 0.3, jnp.full(256, log_scale))  # mean 0.3
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-4)


def test_discretized_likelihood_reaches_far_tails():
    # This bin holds 1e-7 (in the tanh form, float64). A tanh that saturates early would make it 1e-12.
    scale = 0.0075
    z = 5.4 + np.array([-1, 1]) / (255 * scale)
    tails = 1 / (1 + np.exp(2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    offset = jnp.array([-5.4, 5.4]) * scale
    value = discretized_log_likelihood(jnp.zeros(2), offset, jnp.full(2, np.log(scale)))
    np.testing.assert_allclose(value, np.log(tails[0] - tails[1]), atol=0.5)  # float32 steps near 1: 6e-8


def test_index_past_the_end_is_nan_not_the_last_step():
    x0, eps, _ = batch(5)
    x_t = Process().respaced(10).q_sample(x0, jnp.array([0, 9, 10, 999]), eps)
    assert jnp.isnan(x_t).all((1, 2, 3)).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Process(20), "20"),
        (lambda: Process(100, (3,)), "two or more"),
        (lambda: Process(100, (5, 5)), "increasing"),
        (lambda: Process(100, (5, 100)), "0..99"),
        (lambda: Process(100, (-1, 10)), "0..99"),
        (lambda: Process().respaced(1), "2..1000"),
        (lambda: Process().respaced(1001), "1001"),
    ],
)
def test_impossible_schedules_are_refused(make, word):
    with pytest.raises(BadInput, match=word):
        make()


def test_shapes_that_do_not_fit_are_refused():
    x0, eps, out = batch(6)
    with pytest.raises(BadInput, match="noise: shape"):
        Process().q_sample(x0, T, eps[:1])
    with pytest.raises(BadInput, match="t: shape"):
        Process().q_sample(x0, T[:1], eps)
    with pytest.raises(BadInput, match="integer"):
        Process().q_sample(x0, T.astype(float), eps)
    with pytest.raises(BadInput, match="model output"):
        Process().training_losses(out[..., :3], x0, T, eps)


def test_earlier_steps_are_whole_and_never_the_first():
    found = Process().earlier(jnp.array([500, 30]), jnp.array([0.1999, 0.1]))
    np.testing.assert_array_equal(found, [301, 1])
