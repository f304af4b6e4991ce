"""What networks mean by their times and outputs, in the terms of samplers and losses."""

import jax.numpy as jnp
import numpy as np
import pytest

from graftax.models.prediction import as_called, network_times, noise_fraction, time_at
from graftax.spec import Prediction

FRACTIONS = np.array([0.0, 0.25, 1.0])
SD3, FLUX, SIT = (
    Prediction("velocity", "noise", False, scale=1000), Prediction("velocity", "noise", False),
    Prediction("velocity", "data", True),
)  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "times"),
    [(Prediction(), [0, 250, 1000]), (SD3, [0, 250, 1000]), (FLUX, [0, 0.25, 1]), (SIT, [1, 0.75, 0])],
)
def test_times_of_noise_fractions_and_back(prediction, times):
    np.testing.assert_allclose(time_at(prediction, FRACTIONS), times)
    np.testing.assert_allclose(noise_fraction(prediction, np.array(times, float)), FRACTIONS)
    given = np.array([3, 999]) if prediction == Prediction() else FRACTIONS
    np.testing.assert_allclose(network_times(prediction, given), given if prediction == Prediction() else times)


def network(x, t, cond):
    """Twice the channels, the second half huge."""
    return jnp.concatenate([x + t[:, None, None, None] + cond, jnp.full_like(x, 1e9)], axis=-1)


def test_a_network_as_its_sampler_calls_it():
    x, t, one = jnp.ones((3, 2, 2, 1)), jnp.asarray(FRACTIONS), jnp.ones(())
    assert as_called(Prediction(), network) is network
    np.testing.assert_allclose(as_called(SD3, network)(x, t, one)[:, 0, 0, 0], [2, 252, 1002])
    np.testing.assert_allclose(as_called(FLUX, network)(x, t, one)[:, 0, 0, 0], [2, 2.25, 3])
    found = as_called(SIT, network)(x, t, one)
    assert found.shape == x.shape
    np.testing.assert_allclose(found[:, 0, 0, 0], [-3, -2.75, -2])
