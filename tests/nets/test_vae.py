"""The VAE by itself: sizes, the posterior, scales, tiles. Comparison with diffusers is in checkpoint/test_vae."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.nets import vae
from graftax.nets.tiles import in_tiles, starts

SMALL = vae.VAESpec(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=3, shift_factor=0.5)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes(SMALL))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(spec):
    return jax.eval_shape(lambda: vae.init(spec, jax.random.key(0)))


def test_true_sizes():
    """Published: 83.65 million, of which the encoder has 34.16 and the decoder 49.49; with 16 channels 83.82."""
    tree = shapes(vae.SD)
    assert (count(tree), count(tree["encoder"]), count(tree["decoder"])) == (83_653_863, 34_163_592, 49_490_179)
    assert count(shapes(vae.FLUX)) == 83_819_683
    assert shapes(vae.FLUX).keys() == {"encoder", "decoder"}
    assert count(shapes(vae.VA_VAE)) == 69_836_067  # as diffusers' of these sizes has
    images, latents = jax.ShapeDtypeStruct((1, 256, 512, 3), jnp.float32), jax.ShapeDtypeStruct((1, 32, 64, 4), jnp.float32)
    encode, decode = (lambda p, x, run=run: run(vae.SD, p, x) for run in (vae.encode_moments, vae.decode))
    assert jax.eval_shape(encode, tree, images).shape == (1, 32, 64, 8)
    assert jax.eval_shape(decode, tree, latents).shape == images.shape


def test_families_have_their_published_scales():
    found = {name: (spec.scaling_factor, spec.shift_factor, spec.latent_channels) for name, spec in vae.FAMILIES.items()}
    assert found == {
        "dit": (0.18215, 0, 4), "maskdit": (0.18215, 0, 4), "sd": (0.18215, 0, 4),
        "pixart-alpha": (0.18215, 0, 4), "sdxl": (0.13025, 0, 4),
        "pixart-sigma": (0.13025, 0, 4), "auraflow": (0.13025, 0, 4), "sd3": (1.5305, 0.0609, 16),
        "flux": (0.3611, 0.1159, 16), "lightningdit": (1, 0, 32),
    }  # fmt: skip
    assert {name: spec.factor for name, spec in vae.FAMILIES.items() if spec.factor != 8} == {"lightningdit": 16}
    assert [name for name, spec in vae.FAMILIES.items() if not spec.scaled] == ["lightningdit"]


def test_large_images_are_one_by_one_on_a_cpu(params, monkeypatch):
    images = jax.random.normal(jax.random.key(1), (3, 8, 4, 3))

    def found():
        traced = jax.jit(lambda x: vae.encode_moments(SMALL, params, x)).trace(images)
        texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")]
        return traced.lower().compile()(images), ["stablehlo.while" in text for text in texts]

    together, loops = found()
    assert loops == [False, False]
    monkeypatch.setattr(vae, "ALONE", 32)
    alone, loops = found()
    assert loops == [True, False]
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)  # sums in another order


def test_spec_survives_json():
    assert vae.VAESpec.from_json(SMALL.to_json()) == SMALL
    assert hash(vae.VAESpec.from_json(SMALL.to_json())) == hash(SMALL)
    assert vae.VAESpec.from_json(vae.VA_VAE.to_json()) == vae.VA_VAE


@pytest.mark.parametrize(
    "text", ["[]", "{}", "nonsense", '{"block_out_channels": [8], "size": 3}', '{"block_out_channels": 8}']
)
def test_other_json_is_refused(text):
    with pytest.raises(BadInput, match="VAE spec"):
        vae.VAESpec.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": ()}, {"block_out_channels": (32, 33)}, {"latent_channels": 0}, {"norm_num_groups": True},
        {"scaling_factor": 0.0}, {"scaling_factor": math.nan}, {"shift_factor": None},
        {"scaling_factor": (1.0, 2.0)}, {"scaling_factor": (1.0, 0.0, 1.0, 1.0)}, {"use_quant_conv": 1},
        {"down_attention": (4,)}, {"down_attention": 3}, {"up_attention": (1, 0)}, {"up_attention": (1, 1)},
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(changes):
    with pytest.raises(BadInput, match=f"VAESpec.{next(iter(changes))}"):
        dataclasses.replace(vae.SD, **changes)


def test_draws_follow_the_posterior():
    mean, logvar = np.array([1.0, -2.0, 0.0]), np.log([4.0, 0.25, 1e-6])
    moments = jnp.tile(jnp.concatenate([mean, logvar]), (50, 20, 20, 1))
    draws = vae.sample_latents(SMALL, moments, jax.random.key(1)).reshape(-1, 3)
    scale = SMALL.scaling_factor
    np.testing.assert_allclose(draws.mean(0), (mean - 0.5) * scale, atol=0.01 * scale * 4)  # 20,000 draws: 0.014 at std 2
    np.testing.assert_allclose(draws.std(0), np.exp(logvar / 2) * scale, rtol=0.03)
    np.testing.assert_allclose(vae.sample_latents(SMALL, moments, None)[0, 0, 0], (mean - 0.5) * scale, rtol=1e-6)


def test_logvar_is_clipped(params):
    bias = params["quant_conv"]["bias"].at[3:].set(jnp.array([-99.0, 99.0, 0.0]))
    wild = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
    moments = jax.jit(vae.encode_moments, static_argnums=0)(SMALL, wild, jnp.zeros((1, 4, 4, 3)))
    assert moments[..., 3].max() == -30
    assert moments[..., 4].min() == 20


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (1, 5, 4, 3), (4, 4, 3)])
def test_images_that_do_not_fit_are_refused(params, shape):
    with pytest.raises(BadInput, match=r"images to encode.*multiples of 2"):
        vae.encode_moments(SMALL, params, jnp.zeros(shape))


@pytest.mark.parametrize("decode", [vae.decode, vae.decode_tiled])
def test_latents_that_do_not_fit_are_refused(params, decode):
    with pytest.raises(BadInput, match="latents to decode"):
        decode(SMALL, params, jnp.zeros((1, 4, 4, 4)))


def test_decoding_in_tiles_is_near_the_whole(params):
    latents = jax.random.normal(jax.random.key(3), (2, 12, 10, 3))
    whole = jax.jit(vae.decode, static_argnums=0)(SMALL, params, latents)
    tiled = vae.decode_tiled(SMALL, params, latents, tile=8, overlap=4)
    assert tiled.shape == whole.shape
    assert 0 < np.abs(tiled - whole).mean() < 0.2 * np.abs(whole).mean(), "normalised by tile, not by image"


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"), [((2, 9, 7, 3), 4, 2), ((1, 3, 20, 1), 5, 0), ((1, 8, 8, 2), 3, 2), ((2, 3, 4, 1), 8, 2)]
)
def test_tiles_of_a_local_function_are_the_whole(shape, tile, overlap):
    """Where a pixel depends on its latent alone there are no seams, whatever the weights."""
    calls = []

    def function(x):
        calls.append(x.shape[1:3])
        return np.repeat(np.repeat(3 * x + 1, 2, axis=1), 2, axis=2)

    arrays = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(in_tiles(function, arrays, tile, overlap, 2), function(arrays), atol=1e-5)
    assert set(calls[:-1]) == {tuple(min(tile, side) for side in shape[1:3])}, "one compiled shape"


def test_neighbouring_tiles_fade_into_each_other():
    """Two tiles of 8, one of zeros and one of ones, share 4 latents: a ramp, no step."""
    values = iter([0.0, 1.0])
    line = in_tiles(lambda x: np.full_like(x, next(values)), np.zeros((1, 1, 12, 1), np.float32), 8, 4, 1)[0, 0, :, 0]
    np.testing.assert_allclose(line, [0] * 4 + [0.125, 0.375, 0.625, 0.875] + [1] * 4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(5, 8, 2), (8, 8, 2), (9, 8, 2), (100, 8, 2), (64, 16, 15), (17, 4, 0)]
)
def test_tiles_cover_and_overlap(size, tile, overlap):
    found = starts(size, min(tile, size), overlap)
    assert found[0] == 0
    assert found[-1] + min(tile, size) == size
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_impossible_tiles_are_refused(params, tile, overlap):
    with pytest.raises(BadInput, match="tiles: tile"):
        vae.decode_tiled(SMALL, params, np.zeros((1, 8, 8, 3)), tile, overlap)
