"""Classifier-free guidance: which channels it moves, how, and where the images are meanwhile."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import guided
from graftax.diffusion.guidance import Weaker
from graftax.errors import BadInput

NULL = 9
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
T, Y = jnp.array([5, 70, 999]), jnp.array([1, 2, NULL])


def null(y):
    """No class for every image."""
    return jnp.full_like(y, NULL)


def model(x, t, y):
    """Every output channel depends on x, t and the class."""
    features = jnp.sin(jnp.concatenate([x, 2 * x + 1], axis=-1) * (1 + y[:, None, None, None]))
    return features + t[:, None, None, None] / 1000


@pytest.mark.parametrize(("channels", "moved"), [(3, 3), (1, 1), (None, 4), (4, 4), (7, 4)])
def test_guides_the_first_channels_and_leaves_the_rest(channels, moved):
    cond, without = model(X, T, Y), model(X, T, null(Y))
    out = guided(model, 2.5, null, channels)(X, T, Y)
    np.testing.assert_allclose(out[..., :moved], (2.5 * cond - 1.5 * without)[..., :moved], atol=1e-5)
    np.testing.assert_array_equal(out[..., moved:], cond[..., moved:])


def test_dit_guides_three_channels_unless_told():
    np.testing.assert_array_equal(guided(model, 2.5, null)(X, T, Y), guided(model, 2.5, null, 3)(X, T, Y))


def test_guiding_towards_the_null_class_changes_nothing():
    np.testing.assert_allclose(guided(model, 4.0, null)(X, T, Y)[2], model(X, T, Y)[2], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.0 + 1e-7])
def test_scale_one_is_no_guidance(scale):
    np.testing.assert_allclose(guided(model, scale, null)(X, T, Y), model(X, T, Y), atol=1e-6)


def test_one_doubled_batch_per_call_and_a_single_one_at_scale_one():
    batches = []

    def counting(x, t, y):
        batches.append((x.shape[0], t.shape[0], y.tolist()))
        return model(x, t, y)

    guided(counting, 2.0, null)(X, T, Y)
    guided(counting, 1.0, null)(X, T, Y)
    assert batches == [(6, 6, [1, NULL, 2, NULL, NULL, NULL]), (3, 3, [1, 2, NULL])]


def test_conditions_may_be_any_tree():
    """The null twin of a tree is asked for as a whole."""

    def with_text(x, t, cond):
        return model(x, t, cond["y"]) * cond["text"].mean((1, 2))[:, None, None, None]

    cond = {"y": Y, "text": jnp.arange(12.0).reshape(3, 2, 2)}
    twin = {"y": null(Y), "text": jnp.ones((3, 2, 2))}
    out = guided(with_text, 3.0, lambda cond: twin, None)(X, T, cond)
    expected = (3 * with_text(X, T, cond) - 2 * with_text(X, T, twin))[..., :4]
    np.testing.assert_allclose(out[..., :4], expected, rtol=1e-5, atol=1e-4)


def test_senseless_arguments_are_refused():
    with pytest.raises(BadInput, match="guidance scale: -1"):
        guided(model, -1.0, null)
    with pytest.raises(BadInput, match="guided channels: 0"):
        guided(model, 2.0, null, channels=0)


SPLIT = """
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from graftax.api import draw
from graftax.diffusion import Sampling, image_keys
from graftax.testing import random_params, tiny_spec

spec, mesh = tiny_spec(depth=1), Mesh(np.array(jax.devices()), ("data",))
assert mesh.size == 8

params = jax.device_put(random_params(spec, jax.random.key(0)), NamedSharding(mesh, P()))
batch = np.ones((16, 8, 8, 4), np.float32), {"y": np.arange(16) % 10}, image_keys(jax.random.key(1), 0, 16)
x, cond, keys = jax.device_put(batch, NamedSharding(mesh, P("data")))
how = Sampling(sampler="sde_dpmpp_2m", steps=3, cfg_scale=2.0)  # it remembers a step and adds noise
compiled = draw.lower(spec, params, x, cond, None, keys, None, sampling=how).compile()
assert compiled.output_shardings.spec == P("data")
print(compiled.as_text())
"""


@pytest.mark.slow
def test_no_device_sends_images_to_another():
    """Compiled for 8 devices, each with 2 of 16 images and all weights."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SPLIT], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "while(" in run.stdout  # the steps are there
    for collective in ("all-to-all", "collective-permute", "all-gather", "all-reduce", "reduce-scatter"):
        assert collective not in run.stdout


def test_a_weaker_twin_is_looked_at_for_a_part_of_the_time():
    """Of its times the first and the last count; beside the guided channels nothing moves."""
    weaker = Weaker(lambda x, t, y: 0.5 * model(x, t, y), 2.0, first=70, last=5)
    for time, inside in ((71, False), (70, True), (5, True), (4, False)):
        t = jnp.full(3, time)
        plain, out = (guided(model, 2.5, null, 3, *more)(X, t, Y) for more in ((), (weaker,)))
        away = model(X, t, Y)[..., :3] if inside else 0.0  # 2 (model - model / 2)
        np.testing.assert_allclose(out[..., :3], plain[..., :3] + away, atol=1e-5)
        np.testing.assert_array_equal(out[..., 3:], plain[..., 3:])
