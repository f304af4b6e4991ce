"""Classifier-free guidance: which channels it moves, how, and where the images are meanwhile."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import guided
from graftax.errors import BadInput

NULL = 9
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
T, Y = jnp.array([5, 70, 999]), jnp.array([1, 2, NULL])


def model(x, t, y):
    """Every output channel depends on x, t and the class."""
    features = jnp.sin(jnp.concatenate([x, 2 * x + 1], axis=-1) * (1 + y[:, None, None, None]))
    return features + t[:, None, None, None] / 1000


@pytest.mark.parametrize(("channels", "moved"), [(3, 3), (1, 1), (None, 4), (4, 4), (7, 4)])
def test_guides_the_first_channels_and_leaves_the_rest(channels, moved):
    cond, null = model(X, T, Y), model(X, T, jnp.full_like(Y, NULL))
    out = guided(model, 2.5, NULL, channels)(X, T, Y)
    np.testing.assert_allclose(out[..., :moved], (2.5 * cond - 1.5 * null)[..., :moved], atol=1e-5)
    np.testing.assert_array_equal(out[..., moved:], cond[..., moved:])


def test_dit_guides_three_channels_unless_told():
    np.testing.assert_array_equal(guided(model, 2.5, NULL)(X, T, Y), guided(model, 2.5, NULL, 3)(X, T, Y))


def test_guiding_towards_the_null_class_changes_nothing():
    np.testing.assert_allclose(guided(model, 4.0, NULL)(X, T, Y)[2], model(X, T, Y)[2], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.0 + 1e-7])
def test_scale_one_is_no_guidance(scale):
    np.testing.assert_allclose(guided(model, scale, NULL)(X, T, Y), model(X, T, Y), atol=1e-6)


def test_one_doubled_batch_per_call_and_a_single_one_at_scale_one():
    batches = []

    def counting(x, t, y):
        batches.append((x.shape[0], t.shape[0], y.tolist()))
        return model(x, t, y)

    guided(counting, 2.0, NULL)(X, T, Y)
    guided(counting, 1.0, NULL)(X, T, Y)
    assert batches == [(6, 6, [1, NULL, 2, NULL, NULL, NULL]), (3, 3, [1, 2, NULL])]


def test_senseless_arguments_are_refused():
    with pytest.raises(BadInput, match="guidance scale: -1"):
        guided(model, -1.0, NULL)
    with pytest.raises(BadInput, match="guided channels: 0"):
        guided(model, 2.0, NULL, channels=0)


SPLIT = """
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from graftax.diffusion import Process, guided, sample
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

spec, mesh = tiny_spec(depth=1), Mesh(np.array(jax.devices()), ("data",))
assert mesh.size == 8


def draw(params, x, y, keys):
    return sample(guided(Model(spec, params), 2.0, spec.num_classes), Process().respaced(3), x, y, keys)


params = jax.device_put(random_params(spec, jax.random.key(0)), NamedSharding(mesh, P()))
batch = np.ones((16, 8, 8, 4), np.float32), np.arange(16) % 10, jax.random.split(jax.random.key(1), 16)
compiled = jax.jit(draw).lower(params, *jax.device_put(batch, NamedSharding(mesh, P("data")))).compile()
assert compiled.output_shardings.spec == P("data")
print(compiled.as_text())
"""


def test_no_device_sends_images_to_another():
    """Compiled for 8 devices, each with 2 of 16 images and all weights."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SPLIT], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "while(" in run.stdout  # the steps are there
    for collective in ("all-to-all", "collective-permute", "all-gather", "all-reduce", "reduce-scatter"):
        assert collective not in run.stdout
