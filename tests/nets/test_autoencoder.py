from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graftax.errors import BadInput
from graftax.nets import autoencoder as ae
from graftax.nets.autoencoder import AutoencoderSpec, autoencoder_loss, decode, encode, with_latent_stats

SMALL = AutoencoderSpec(image_size=16, image_channels=2, latent_channels=3, width=8)


Params = dict[str, Any]


@pytest.fixture(scope="module")
def fresh() -> Params:
    return jax.jit(lambda key: ae.init(SMALL, key))(jax.random.key(0))


def blobs(count: int, spec: AutoencoderSpec, seed: int = 0) -> np.ndarray:
    """Smooth images in [-1, 1]: one bright disc each, (n, h, w, c)."""
    rng = np.random.default_rng(seed)
    grid = np.arange(spec.image_size) / spec.image_size
    cy, cx = rng.uniform(0.2, 0.8, (2, count, 1, 1))
    disc = np.exp(-((grid[None, :, None] - cy) ** 2 + (grid[None, None] - cx) ** 2) / 0.05)
    return np.repeat(2 * disc[..., None] - 1, spec.image_channels, -1).astype(np.float32)


def test_spec_survives_json_and_refuses_nonsense() -> None:
    assert AutoencoderSpec.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(BadInput, match="colour"):
        AutoencoderSpec.from_json('{"colour": 3}')
    with pytest.raises(BadInput, match="expected AutoencoderSpec fields"):
        AutoencoderSpec.from_json("[1")
    with pytest.raises(BadInput, match="multiples of 4 and 2"):
        AutoencoderSpec(image_size=30)
    with pytest.raises(BadInput, match="width: got 0"):
        AutoencoderSpec(width=0)
    with pytest.raises(BadInput, match=r"noise: got 1.5"):
        AutoencoderSpec(noise=1.5)


def test_the_demo_spec_makes_8x8x4_latents_with_small_halves() -> None:
    spec = AutoencoderSpec()
    assert spec.latent_shape == (8, 8, 4)
    assert spec.image_shape == (32, 32, 1)
    params = jax.eval_shape(lambda: ae.init(spec, jax.random.key(0)))
    for half in ("encoder", "decoder"):
        assert sum(a.size for a in jax.tree.leaves(params[half])) < 150_000


def test_space_to_depth_gathers_two_by_two_pixels_and_is_undone() -> None:
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    packed = ae.space_to_depth(x)
    assert packed.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(packed[0, 1, 2].reshape(2, 2, 3), x[0, 2:4, 4:6])
    np.testing.assert_array_equal(ae.depth_to_space(packed), x)


def test_latents_are_standardised_by_the_measured_statistics(fresh: Params) -> None:
    images = blobs(40, SMALL)
    params = with_latent_stats(SMALL, fresh, images, batch_size=16)
    latents = np.asarray(jax.jit(lambda x: encode(SMALL, params, x))(images))
    assert latents.shape == (40, 4, 4, 3)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-3)


def test_decoded_images_stay_in_range(fresh: Params) -> None:
    latents = 100 * jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    images = jax.jit(lambda z: decode(SMALL, fresh, z))(latents)
    assert images.shape == (2, 16, 16, 2)
    assert float(jnp.abs(images).max()) == 1.0  # clipped, since such latents decode far outside


@pytest.mark.slow
def test_the_encoder_cannot_drown_the_noise_by_growing(fresh: Params) -> None:
    last = jax.tree.map(lambda a: 50 * a, fresh["encoder"]["Dense_0"])
    grown = {**fresh, "encoder": {**fresh["encoder"], "Dense_0": last}}
    batch = {"image": jnp.asarray(blobs(8, SMALL))}
    loss = jax.jit(lambda params, seed: autoencoder_loss(SMALL)(params, batch, jax.random.key(seed))[0])
    np.testing.assert_allclose(loss(fresh, 2), loss(grown, 2), rtol=1e-3)
    assert loss(fresh, 2) != loss(fresh, 3)  # the noise is there


def test_training_learns_to_reconstruct(fresh: Params) -> None:
    params, batch = fresh, {"image": jnp.asarray(blobs(32, SMALL))}
    loss, optimiser = autoencoder_loss(SMALL), optax.adam(5e-3)

    @jax.jit
    def step(params, state, i):
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, jax.random.key(i))
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    state, history = optimiser.init(params), []
    for i in range(150):
        params, state, metrics = step(params, state, i)
        history.append(float(metrics["psnr"]))
    assert history[-1] > max(22, history[0] + 12), (history[0], history[-1])
    np.testing.assert_array_equal(params["latent_stats"]["mean"], 0)  # not trained


def test_psnr_of_a_known_error() -> None:
    np.testing.assert_allclose(ae.psnr(jnp.asarray(0.04)), 20.0, rtol=1e-6)  # rms 0.2 of a range of 2 is a tenth


def test_wrong_shapes_are_refused_before_any_work(fresh: Params) -> None:
    with pytest.raises(BadInput, match=r"images to encode: shape \(1, 16, 16, 1\), expected \(b, 16, 16, 2\)"):
        encode(SMALL, fresh, jnp.zeros((1, 16, 16, 1)))
    with pytest.raises(BadInput, match=r"latents to decode: shape \(4, 4, 3\), expected \(b, 4, 4, 3\)"):
        decode(SMALL, fresh, jnp.zeros((4, 4, 3)))
