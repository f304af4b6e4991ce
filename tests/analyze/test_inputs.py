"""Inputs of an analysis: the trajectory is that of sampling, guided halves included; bins of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import teacher

from graftax import api
from graftax.analyze.inputs import TimeBins, bin_of, trajectory
from graftax.diffusion import Process
from graftax.errors import BadInput

LABELS = np.array([3, 1, 7, 2, 5])


@pytest.mark.parametrize("scale", [2.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_trajectory_is_that_of_sampling(scale):
    model, steps = teacher(depth=2), 4
    inputs = list(trajectory(model, LABELS, steps=steps, cfg_scale=scale, batch_size=2, rng=jax.random.key(5)))
    assert len(inputs) == 2 * steps  # the fifth sample is left out
    process, halves = Process().respaced(steps), 1 if scale == 1 else 2
    for part, start in ((inputs[:steps], 0), (inputs[steps:], 2)):
        x_first = part[0][0][:2]
        drawn = api.sample(
            model, LABELS[start : start + 2], sampler="ddim", steps=steps, cfg_scale=scale, initial_noise=x_first
        )
        x, t, y = part[-1]
        assert x.shape == (2 * halves, 8, 8, 4)
        assert [int(batch[1][0]) for batch in part] == process.timestep_map[::-1].tolist()
        np.testing.assert_array_equal(y, [*LABELS[start : start + 2], *[10] * (2 * halves - 2)])
        noise = model(x, t, y)[..., :4]
        if scale != 1:
            given, null = jnp.split(noise, 2)
            noise = jnp.concatenate([(null + scale * (given - null))[..., :3], given[..., 3:]], -1)
        a = process.tables.alpha_bar[0]
        # After the last step alpha_bar is 1: the sample is the predicted clean image.
        np.testing.assert_allclose((x[:2] - np.sqrt(1 - a) * noise) / np.sqrt(a), drawn, rtol=1e-3, atol=1e-3)


def test_time_bins():
    bins = TimeBins(4, (2,))
    bins.add([0, 249, 999], [[1, 2], [3, 4], [5, 9]])
    bins.add([999.5], [[7, 9]])
    np.testing.assert_array_equal(bins.mean, [4, 6])
    np.testing.assert_array_equal(bins.by_time, [[2, 3], [np.nan] * 2, [np.nan] * 2, [6, 9]])
    np.testing.assert_array_equal(bin_of([0, 99, 100, 999], 10), [0, 0, 1, 9])


def test_refuses():
    model = teacher(depth=2)
    for labels, reason in (([11], r"labels: 11\.\.11"), ([0.5], "float64"), ([], "n >= 1")):
        with pytest.raises(BadInput, match=reason):
            trajectory(model, np.array(labels))
    with pytest.raises(BadInput, match="sampling steps: 1"):
        trajectory(model, LABELS, steps=1)
    with pytest.raises(BadInput, match="bins: got 0"):
        TimeBins(0, ())
