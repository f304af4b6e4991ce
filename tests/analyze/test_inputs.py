"""Inputs of an analysis: the trajectory is that of sampling, guided halves included; noised data; bins of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import batch, teacher

from graftax import api
from graftax.analyze.inputs import TimeBins, bin_of, noise_fraction, noised_batches, trajectory
from graftax.diffusion import Flow, Process, heldout_set
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec

LABELS = np.array([3, 1, 7, 2, 5])
KEY = jax.random.key(5)


def relative(a, b):
    return np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_trajectory_is_that_of_sampling(scale):
    """The inputs lead to the very images of `graftax.sample`, in batches of any size."""
    model, steps, halves = teacher(depth=2), 4, 1 if scale == 1 else 2
    inputs = list(trajectory(model, LABELS, steps=steps, cfg_scale=scale, batch_size=2, rng=jax.random.PRNGKey(5)))
    assert len(inputs) == 2 * steps  # the fifth sample is left out
    drawn = api.sample(model, LABELS, sampler="ddim", steps=steps, cfg_scale=scale, rng=KEY)
    process = Process().respaced(steps)
    a = process.tables.alpha_bar[0]
    for part, start in ((inputs[:steps], 0), (inputs[steps:], 2)):
        x, t, cond = part[-1]
        assert x.shape == (2 * halves, 8, 8, 4)
        assert [int(t[0]) for _, t, _ in part] == process.timestep_map[::-1].tolist()
        np.testing.assert_array_equal(cond["y"], [*LABELS[start : start + 2], *[10] * (2 * halves - 2)])
        noise = model(x, t, **cond)[..., :4]
        if scale != 1:
            given, null = jnp.split(noise, 2)
            noise = jnp.concatenate([(null + scale * (given - null))[..., :3], given[..., 3:]], -1)
        # After the last step alpha_bar is 1: the sample is the predicted clean image.
        last = (x[:2] - np.sqrt(1 - a) * noise) / np.sqrt(a)
        assert relative(last, drawn[start : start + 2]) <= 1e-5
    whole = list(trajectory(model, LABELS, steps=steps, cfg_scale=scale, batch_size=4, rng=KEY))
    for one, first, second in zip(whole, inputs[:steps], inputs[steps:], strict=True):
        assert relative(one[0][:4], np.concatenate([first[0][:2], second[0][:2]])) <= 1e-5
        np.testing.assert_array_equal(one[2]["y"][:4], LABELS[:4])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", pytest.param("sde_dpmpp_2m", marks=pytest.mark.slow)])
def test_any_samplers_trajectory_leads_to_its_images(sampler):
    """With what it remembers of the step before, and with its noise."""
    model, how = teacher(depth=1), {"sampler": sampler, "steps": 3, "cfg_scale": 1.0}
    inputs = list(trajectory(model, LABELS, batch_size=5, rng=KEY, **how))
    assert [int(t[0]) for _, t, _ in inputs] == api.sampling_for(model.spec, **how).timesteps.tolist()
    x, t, cond = inputs[-1]
    a = Process().tables.alpha_bar[int(t[0])]
    clean = (x - np.sqrt(1 - a) * model(x, t, **cond)[..., :4]) / np.sqrt(a)  # the last step returns it
    assert relative(clean, api.sample(model, LABELS, rng=KEY, **how)) <= 1e-5


def test_noised_batches_are_the_held_out_set():
    spec, data, process = tiny_spec(), batch(0, 7), Process().respaced(50)
    found = noised_batches(spec, data, process, seed=3, batch_size=3)
    assert len(found) == 2  # the seventh image is left out
    for (x, t, cond), (part, number, noise) in zip(
        found, heldout_set(data, process, seed=3, batch_size=3).batches(), strict=True
    ):
        np.testing.assert_allclose(x, process.q_sample(part["image"], number, noise), rtol=1e-6)
        np.testing.assert_array_equal(t, process.timestep_map[number])
        np.testing.assert_array_equal(cond["y"], part["label"])


def test_a_velocity_model_is_looked_at_at_its_own_times():
    spec = tiny_spec(depth=1).replace(prediction=Prediction("velocity", "noise", False, scale=1000))
    model = Model(spec, random_params(spec, jax.random.key(0)))
    how = {"steps": 3, "shift": 3.0, "cfg_scale": 1.0}
    inputs = list(trajectory(model, LABELS, batch_size=5, rng=KEY, **how))
    np.testing.assert_allclose([t[0] for _, t, _ in inputs], 1000 * api.sampling_for(spec, **how).timesteps, rtol=1e-6)
    x, t, cond = inputs[-1]
    s = noise_fraction(spec, t[0])  # the last step takes it all away
    assert relative(x - s * model(x, t, **cond), api.sample(model, LABELS, rng=KEY, **how)) <= 1e-5
    for (x, t, _), (part, number, noise) in zip(
        noised_batches(spec, batch(0, 7), None, batch_size=3), heldout_set(batch(0, 7), Flow(), batch_size=3).batches(),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(t, 1000 * number, rtol=1e-6)
        np.testing.assert_allclose(x, Flow().q_sample(part["image"], number, noise), rtol=1e-6)
    with pytest.raises(BadInput, match=r"expected Flow\(path=.linear., target=.velocity.\)"):
        noised_batches(spec, batch(0, 7), Process())


def test_time_bins():
    bins = TimeBins(4, (2,))
    bins.add(np.array([0, 249, 999]) / 1000, [[1, 2], [3, 4], [5, 9]])
    bins.add([0.9995], [[7, 9]])
    np.testing.assert_array_equal(bins.mean, [4, 6])
    np.testing.assert_array_equal(bins.by_time, [[2, 3], [np.nan] * 2, [np.nan] * 2, [6, 9]])
    np.testing.assert_array_equal(bin_of([-0.1, 0, 1, 1.1], 10), [0, 0, 9, 9])


def test_times_as_fractions():
    """Integer times are sorted exactly, also those on edges that rounding misses."""
    spec, t = tiny_spec(), np.arange(1000)
    for bins in (1, 3, 10, 100, 1000):
        np.testing.assert_array_equal(bin_of(noise_fraction(spec, t), bins), t * bins // 1000)
    noisy, clean = (spec.replace(prediction=Prediction(time=time)) for time in ("noise", "data"))
    t = np.linspace(0, 1, 101, dtype=np.float32)
    np.testing.assert_allclose(noise_fraction(noisy, t), t)
    np.testing.assert_allclose(noise_fraction(clean, t), 1 - t.astype(float))
    np.testing.assert_array_equal(bin_of(noise_fraction(noisy, t), 100), [*range(100), 99])


def test_refuses():
    model = teacher(depth=2)
    for labels, reason in (([11], r"y: \[11\]"), ([0.5], "y: float32"), ([], "b >= 1"), (3, "one entry for each image")):
        with pytest.raises(BadInput, match=reason):
            trajectory(model, np.array(labels))
    with pytest.raises(BadInput, match="no labels and no cond"):
        trajectory(model)
    with pytest.raises(BadInput, match="sampling steps: 1"):
        trajectory(model, LABELS, steps=1)
    with pytest.raises(BadInput, match="batch_size: got 0"):
        trajectory(model, LABELS, batch_size=0)
    with pytest.raises(BadInput, match="bins: got 0"):
        TimeBins(0, ())
    with pytest.raises(BadInput, match=r"held-out set: x: shape \(3, 8, 8, 3\)"):
        noised_batches(model.spec, {"image": np.zeros((3, 8, 8, 3)), "label": np.zeros(3)}, Process())
