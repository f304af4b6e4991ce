"""How images are drawn, as one value, through a whole model: settings, the convention for noise, conditions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.diffusion import Sampling, image_keys, initial_noise, unit_noise
from graftax.errors import BadInput
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

KEY = jax.random.key(5)


@functools.cache
def model() -> Model:
    spec = tiny_spec(depth=1, hidden_size=16, num_heads=2)
    return Model(spec, random_params(spec, jax.random.key(0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "unipc"}, "sampler: got 'unipc'"),
        ({"steps": 1001}, "sampling steps: 1001"),
        ({"cfg_scale": -1.0}, "guidance scale: -1"),
        ({"cfg_scale": float("nan")}, "guidance scale: nan"),
        ({"cfg_channels": -1}, "guided channels: -1"),
        ({"sampler": "ddpm", "eta": 0.2}, "eta: 0.2 with 'ddpm'"),
        ({"skip": (-1,)}, r"skip: got \(-1,\), expected positions"),
        ({"skip": 7}, "skip: got 7, expected positions"),
        ({"skip": (7,), "cfg_scale": 1.0}, r"skip: got \(7,\) and no guidance"),
        ({"skip": (7,), "steps": 4}, r"skip_span: \(0.01, 0.2\) of 4 steps, expected one step or more"),
        ({"skip_span": (0.5, 0.2)}, r"skip_span: got \(0.5, 0.2\), expected two shares"),
        ({"skip_scale": float("nan")}, "skip_scale: got nan"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        Sampling(**fields)


def test_settings_in_words():
    assert str(Sampling()) == "DDIM, 50 steps, guidance 1.5 on the first 3 channels"
    assert str(Sampling(sampler="ddim", steps=50, cfg_scale=1.0, eta=0.5)) == "DDIM, 50 steps, eta 0.5, no guidance"
    assert str(Sampling(cfg_channels=None)).endswith("guidance 1.5 on all channels")
    assert str(Sampling(skip=(7, 8))).endswith("channels, 2.8 from skipping (7, 8) in 0.01 to 0.2 of the steps")


@pytest.mark.parametrize(
    ("steps", "span", "expected"), [(28, (0.01, 0.2), [1, 2, 3, 4, 5]), (5, (0.01, 0.5), [1, 2]), (10, (0, 0.2), [1])]
)
def test_steps_with_skipped_layers(steps, span, expected):
    """Strictly between both ends, as diffusers counts them."""
    assert list(Sampling(steps=steps, skip=(0,), skip_span=span).skip_steps) == expected


def test_noise_depends_on_the_seed_and_the_image_alone():
    keys = image_keys(KEY, 0, 6)
    np.testing.assert_array_equal(jax.random.key_data(image_keys(KEY, 4, 2)), jax.random.key_data(keys[4:]))
    noise = unit_noise(keys, 3, (4, 4, 2))
    np.testing.assert_allclose(unit_noise(keys[2:3], 3, (4, 4, 2))[0], noise[2], atol=1e-6)
    np.testing.assert_array_equal(initial_noise(keys, 3, (4, 4, 2)), noise)
    assert len({np.asarray(one).tobytes() for one in noise}) == 6
    assert abs(float(noise.mean())) < 5 / noise.size**0.5


def test_a_batch_or_its_parts_and_one_key_or_one_for_each():
    draw = functools.partial(graftax.sample, model(), sampler="ddpm", steps=3, cfg_scale=1.0)
    labels = np.array([0, 3, 9, 10])
    whole = draw(labels, rng=KEY)
    tolerance = 1e-5 * float(jnp.abs(whole).max())
    np.testing.assert_allclose(draw(labels[1:3], rng=image_keys(KEY, 1, 2)), whole[1:3], atol=tolerance)
    np.testing.assert_allclose(draw(cond={"y": labels}, rng=image_keys(KEY, 0, 4)), whole, atol=tolerance)
    given = {
        "initial_noise": initial_noise(image_keys(KEY, 0, 4), 3, (8, 8, 4)),
        "step_noise": jnp.stack([unit_noise(image_keys(KEY, 0, 4), i, (8, 8, 4)) for i in range(3)]),
    }
    np.testing.assert_allclose(draw(labels, **given), whole, atol=tolerance)


def test_guidance_takes_the_backbones_null_class_unless_told():
    draw = functools.partial(graftax.sample, model(), np.array([1, 2]), rng=KEY)
    how = Sampling(sampler="ddim", steps=2, cfg_scale=3.0)
    out = draw(sampling=how)
    tolerance = 1e-5 * float(jnp.abs(out).max())
    np.testing.assert_allclose(draw(sampler="ddim", steps=2, cfg_scale=3.0), out, atol=tolerance)
    np.testing.assert_allclose(draw(sampling=how, null_cond={"y": np.array([10, 10])}), out, atol=tolerance)
    other = draw(sampling=how, null_cond={"y": np.array([5, 5])})
    assert float(jnp.abs(other - out).max()) > 100 * tolerance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": None}, "no labels and no cond"),
        ({"labels": 3}, "no labels and no cond"),
        ({"labels": np.array([11])}, r"y: \[11\], expected classes 0\.\.9"),
        ({"labels": np.array([0.5])}, "expected class ids of integer type"),
        ({"cond": {"text": np.ones((2, 3))}}, r"conditions: got \['text', 'y'\]"),
        ({"rng": jax.random.split(KEY, 3)}, r"rng: shape \(3,\), expected one key, or one for each of 2 images"),
        ({"initial_noise": np.zeros((2, 4, 4, 4))}, "initial_noise: x: shape"),
        ({"skip": (0,)}, r"skip: got \(0,\), expected positions 0..0 of the program, not all of them"),
        ({"sampling": Sampling(skip=(5,))}, r"skip: got \(5,\), expected positions 0..0"),
        ({"sampling": Sampling(), "steps": 3}, r"sampling and \['steps'\] given"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        graftax.sample(model(), **{"labels": np.array([1, 2]), **arguments})
