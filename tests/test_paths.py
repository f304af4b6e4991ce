"""Paths from data to noise: the reference's numbers, and the way back from a noise level to a time."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.paths import alpha_bars, ends, level, time_on

GOLDENS = Path(__file__).parent / "goldens" / "modern"
PATHS = ("linear", "gvp", "vp", "ddpm", "edm")


@pytest.mark.parametrize(("path", "name"), [("linear", "Linear"), ("gvp", "GVP"), ("vp", "VP")])
def test_levels_of_the_reference(path, name):
    """SiT's code counts the data's fraction, so derivatives have the other sign."""
    with np.load(GOLDENS / "sit_losses.npz") as file:
        expected = [file[f"{name}.{part}"] for part in ("alpha", "sigma", "dalpha", "dsigma")]
        t = jnp.asarray(1 - file["t"])
    at = level(path, t)
    found = (at.alpha, at.sigma, -at.dalpha, -at.dsigma)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("path", PATHS)
def test_from_a_noise_level_to_its_time_and_back(path):
    """In numpy to many digits, in jax to float32's; slopes are those of alpha and sigma."""
    least, most = ends(path)
    fraction = np.linspace(least + 1e-3, most - 1e-3, 41)
    t = time_on(path, fraction)
    np.testing.assert_allclose(level(path, t).fraction, fraction, rtol=1e-12)
    np.testing.assert_allclose(level(path, time_on(path, jnp.asarray(fraction, jnp.float32))).fraction, fraction, rtol=3e-6)
    if path != "ddpm":
        at, h = level(path, t), 1e-6 * t
        below, above = level(path, t - h), level(path, t + h)
        np.testing.assert_allclose(at.dalpha, (above.alpha - below.alpha) / (2 * h), atol=1e-5)
        np.testing.assert_allclose(at.dsigma, (above.sigma - below.sigma) / (2 * h), rtol=1e-6)


def test_steps_of_ddpm():
    at, kept = level("ddpm", np.arange(1000)), alpha_bars()
    np.testing.assert_allclose(at.alpha, np.sqrt(kept), rtol=1e-12)
    np.testing.assert_allclose(at.sigma, np.sqrt(1 - kept), rtol=1e-12)
    np.testing.assert_allclose(time_on("ddpm", np.array([0.0, 1.0])), [0, 999])  # the nearest that there is
    with np.load(GOLDENS / "dit_velocity_wrapper.npz") as file:
        np.testing.assert_allclose(time_on("ddpm", file["frac.tau"]), file["frac.t"], rtol=1e-12)
        np.testing.assert_allclose(ends("ddpm"), [file["tau_min"], file["tau_max"]], rtol=1e-12)
        np.testing.assert_allclose(at.fraction, file["tau_of_integer_t"], rtol=1e-12)


def test_noise_fractions_of_the_ends():
    assert ends("linear") == ends("gvp") == (0, 1)
    assert ends("edm") == pytest.approx((0.002 / 1.002, 80 / 81))
    for path in ("linear", "gvp"):
        assert time_on(path, np.array([0.0, 1.0])).tolist() == [0, 1]
    assert all(jnp.isfinite(part).all() for part in jax.tree.leaves(level("vp", jnp.array([0.0, 1.0]))))
