"""Band-k mass: its direct definition, uniform attention, the rankings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.analyze import locality as module
from graftax.analyze.locality import attention_locality, by_distance, default_k, low_local, top_local, uniform_mass
from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import compose, graft, replace, reverse, tie
from graftax.testing import random_params, tiny_spec

KEY = jax.random.key(0)


@functools.cache
def model(*edits, **sizes):
    if edits:
        return graft(model(**sizes), compose(*edits), KEY)
    spec = tiny_spec(**{"hidden_size": 16, "num_heads": 2, **sizes})
    return Model(spec, random_params(spec, KEY))


def batch(seed=0, t=(3, 990), size=8):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((2, size, size, 4), np.float32)), jnp.array(t), {"y": jnp.array([1, 10])}


def direct(of, inputs, k):
    """{block: L_k} by writing out every head's attention of every sample and the band."""
    x, t, cond = inputs
    taps = of.apply(x, t, **cond, capture=("mixer/in",))[1]["mixer/in"]
    found = {}
    for row, step in enumerate(of.spec.program):
        (block,) = step.blocks
        p, u = of.params["blocks"][of.spec.block_key(block)]["mixer"], np.asarray(taps[row], np.float64)
        if "qkv" not in p:
            continue
        b, n, d = u.shape
        q, key, _ = np.moveaxis((u @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(b, n, 3, 2, d // 2), (2, 3), (0, 1))
        a = np.exp(q @ np.swapaxes(key, -1, -2) / np.sqrt(d / 2))  # (h, b, n, n)
        a /= a.sum(-1, keepdims=True)
        band = abs(np.subtract.outer(range(n), range(n))) <= k
        found.setdefault(block, []).append((a * band).sum((-1, -2)).mean() / n)
    return {block: np.mean(values) for block, values in found.items()}


@pytest.mark.parametrize("elements", [module.ELEMENTS, 1])
def test_is_the_direct_definition(elements, monkeypatch):
    """Also of a grafted model whose order is changed, and one head at a time."""
    monkeypatch.setattr(module, "ELEMENTS", elements)
    mixed = model(replace("blocks[1].mixer", "hyena_x"), reverse(0, 4))
    inputs = batch(), batch(1, (500, 800))
    found = attention_locality(mixed, inputs, bins=2)
    assert found.blocks == (0, 2, 3)
    np.testing.assert_allclose(found.profile.sum(-1), 1, rtol=1e-5)
    for k in (0, 3, 15):
        parts = [direct(mixed, one, k) for one in inputs]
        np.testing.assert_allclose(found.mass(k), [np.mean([p[i] for p in parts]) for i in (0, 2, 3)], rtol=1e-5)
    np.testing.assert_allclose(found.sweep()[:, 3], found.mass(3))
    # Three of the four samples are in the upper half of the timesteps.
    np.testing.assert_allclose((found.mass_by_time(3) * [[1], [3]]).sum(0) / 4, found.mass(3), rtol=1e-6)


def test_blocks_that_run_twice_count_once():
    tied = model(tie((1, 2)))
    found = attention_locality(tied, [batch()])
    expected = direct(tied, batch(), 2)
    assert found.blocks == tuple(sorted(expected))
    np.testing.assert_allclose(found.mass(2), [expected[i] for i in found.blocks], rtol=1e-5)


def test_uniform_attention():
    """Zero queries look everywhere alike: 0.2378 of the mass within 32 of 256 tokens."""
    whole = model(input_size=32, depth=1)
    params = jax.tree.map(lambda leaf: leaf, whole.params)
    params["blocks"]["00"]["mixer"]["qkv"] = jax.tree.map(jnp.zeros_like, params["blocks"]["00"]["mixer"]["qkv"])
    flat = whole.replace(params=params)
    found = attention_locality(flat, [batch(size=32)])
    assert found.mass(32)[0] == pytest.approx(0.2378, abs=5e-5)
    assert uniform_mass(256, 32) == pytest.approx(found.mass(32)[0], rel=1e-5)
    assert default_k(256) == 32


@pytest.mark.parametrize("n", [1, 2, 5])
def test_sums_of_diagonals(n):
    a = np.random.default_rng(n).random((n, n), np.float32)
    distance = abs(np.subtract.outer(range(n), range(n)))
    np.testing.assert_allclose(by_distance(jnp.asarray(a)), [a[distance == k].sum() for k in range(n)], rtol=1e-6)


def test_rankings_feed_a_graft():
    profile = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = module.Locality((0, 2, 3, 5), profile, profile[None])
    assert top_local(found, 0) == (0, 3)
    assert low_local(found, 0) == (2, 5)
    assert top_local(found, 0, share=0.75) == (0, 2, 3)
    student = graft(model(depth=6), replace(list(top_local(found, 0)), "hyena_x"), KEY)
    assert student.meta.sites == ("blocks[0].mixer", "blocks[3].mixer")
    with pytest.raises(BadInput, match=r"share: got 0\.1 of 4 blocks"):
        top_local(found, 0, 0.1)
    with pytest.raises(BadInput, match=r"k: got 2, expected 0\.\.1"):
        found.mass(2)


def test_attention_to_text_has_no_raster(two_streams, streams_batch):
    with pytest.raises(BadInput, match=r"no block has a mixer 'mha', it has \[\]"):
        attention_locality(two_streams, [streams_batch])


def test_refuses():
    with pytest.raises(BadInput, match=r"no block has a mixer 'mha', it has \['hyena_x'\]"):
        attention_locality(model(replace("blocks[*].mixer", "hyena_x")), [batch()])
    with pytest.raises(BadInput, match="locality: no inputs"):
        attention_locality(model(), [])
