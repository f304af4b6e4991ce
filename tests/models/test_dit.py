"""Published sizes, initialisation, the Flax facade, and the parts around the blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import DiT, Meta, Model, dit_spec, forward, init, param_shapes, variant
from graftax.models.dit import PATCHES, RESOLUTIONS, SIZES
from graftax.models.embed import layer_norm, sinusoidal_positions, timestep_features
from graftax.spec import ModelSpec
from graftax.testing import random_params, tiny_spec

ROUNDED = {"S": 33, "B": 130, "L": 458, "XL": 675}
"""Millions of parameters in DiT, Table 4, for patch size 2."""


def batch(spec, size=2):
    rng = np.random.default_rng(0)
    shape = (size, spec.input_size, spec.input_size, spec.in_channels)
    return rng.standard_normal(shape, np.float32), np.linspace(0, 999, size, dtype=np.float32), np.arange(size)


def counted(name, resolution):
    """(trained, fixed) parameters of the tree."""
    shapes = param_shapes(variant(name, resolution))
    fixed = shapes["pos_embed"].size
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) - fixed, fixed


def by_hand(depth, d, patch, resolution):
    """The same from the published architecture."""
    block = (6 * d * d + 6 * d) + (4 * d * d + 4 * d) + (8 * d * d + 5 * d)  # adaLN, attention, MLP
    patches = 4 * patch * patch * d + d
    conditioning = 256 * d + d + d * d + d + 1001 * d
    final = 2 * d * d + 2 * d + d * 8 * patch * patch + 8 * patch * patch
    return depth * block + patches + conditioning + final, (resolution // 8 // patch) ** 2 * d


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size, patch, resolution):
    depth, width, _ = SIZES[size]
    trained, fixed = counted(f"DiT-{size}/{patch}", resolution)
    assert (trained, fixed) == by_hand(depth, width, patch, resolution)
    if patch == 2:
        assert round(trained / 1e6) == pytest.approx(ROUNDED[size], abs=1)


def test_parameters_of_xl():
    assert counted("DiT-XL/2", 256) == (674_834_720, 294_912)


@pytest.mark.parametrize("name", ["DiT-M/2", "DiT-XL/3", "XL/2", "DiT-XL", ""])
def test_unknown_variant(name):
    with pytest.raises(BadInput, match="variant"):
        variant(name)


def test_unknown_resolution():
    with pytest.raises(BadInput, match="resolution: got 384"):
        variant("DiT-S/2", 384)


def test_published_heads():
    assert {name: variant(f"DiT-{name}/2").num_heads for name in SIZES} == {"S": 6, "B": 12, "L": 16, "XL": 16}


def test_initialisation_is_that_of_dit():
    spec = tiny_spec(depth=1)
    params = init(spec, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(param_shapes(spec))
    zeros = (params["blocks"]["00"]["adaln"], params["final"])
    assert not any(np.any(leaf) for tree in zeros for leaf in jax.tree.leaves(tree))
    for path in ("qkv", "proj"):
        kernel = params["blocks"]["00"]["mixer"][path]["kernel"]
        assert np.abs(kernel).max() <= math.sqrt(6 / sum(kernel.shape))
    patches = params["x_embedder"]["kernel"]  # Xavier over the flattened patch
    bound = math.sqrt(6 / (16 + 48))
    assert 0.9 * bound < np.abs(patches).max() <= bound
    for table in (params["y_embedder"]["embedding"], params["t_embedder"]["fc1"]["kernel"]):
        assert float(jnp.std(table)) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(params["pos_embed"], sinusoidal_positions(48, 4))
    # Gates at zero: blocks do nothing, and the output layer answers zero.
    out, taps = forward(spec, params, *batch(spec), capture=("block/out", "mixer/in"))
    assert not out.any()
    assert taps["mixer/in"].any()


def test_facade():
    spec = tiny_spec(depth=2)
    x, t, y = batch(spec)
    module = DiT(spec)
    params = module.init(jax.random.key(0), x, t, y)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, param_shapes(spec))
    params = random_params(spec, jax.random.key(0))
    np.testing.assert_array_equal(module.apply({"params": params}, x, t, y), forward(spec, params, x, t, y)[0])
    table = module.tabulate(jax.random.key(0), x, t, y, console_kwargs={"width": 200})
    assert all(name in table for name in ("x_embedder", "blocks/00/mixer", "final"))


@pytest.mark.parametrize(("width", "grid"), [(48, 4), (8, 3)])
def test_position_table_is_its_formula(width, grid):
    table = sinusoidal_positions(width, grid)
    assert table.shape == (1, grid * grid, width)
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                expected = [math.sin(column * w), math.cos(column * w), math.sin(row * w), math.cos(row * w)]
                np.testing.assert_allclose(table[0, row * grid + column, i::quarter], expected, atol=1e-6)


def test_timestep_features_are_their_formula():
    t = jnp.array([0.0, 7.0, 999.0])
    features = timestep_features(t)
    assert features.shape == (3, 256)
    w = 10000 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(np.outer(t, w)), np.sin(np.outer(t, w))], axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-4)  # angles up to 999 in float32
    np.testing.assert_array_equal(timestep_features(jnp.array([0, 7, 999])), features)


def test_layer_norm_far_from_zero():
    x = 1000 + np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(x), exact, atol=2e-4)


def test_patches_and_pixels_are_in_raster_order():
    """A model whose blocks do nothing, whose head copies its first token channels: pixels come out where they went in."""
    spec = tiny_spec(hidden_size=64, depth=1, learn_sigma=False)
    params = init(spec, jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params)
    params["x_embedder"]["kernel"] = jnp.eye(16, 64).reshape(2, 2, 4, 64)
    params["final"]["linear"]["kernel"] = jnp.eye(64, 16)
    x, t, y = batch(spec)
    out, taps = forward(spec, params, x, t, y, capture=("block/out",))
    patches = np.stack([x[:, r : r + 2, c : c + 2].reshape(2, -1) for r in range(0, 8, 2) for c in range(0, 8, 2)], axis=1)
    np.testing.assert_allclose(taps["block/out"][0, ..., :16], patches, atol=1e-6)
    assert out.shape == x.shape
    normed = np.asarray(layer_norm(taps["block/out"][0]))[..., :16].reshape(2, 4, 4, 2, 2, 4)
    np.testing.assert_allclose(out, normed.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape), atol=1e-6)


def test_class_and_time_count():
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    x, t, y = batch(spec)
    base = model(x, t, y)
    assert np.abs(model(x, t, y + 1) - base).max() > 1e-3
    assert np.abs(model(x, t + 0.5, y) - base).max() > 1e-3
    assert np.isfinite(model(x, t, np.full(2, spec.num_classes))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, y: (x[:, :4], t, y), "x: shape"),
        (lambda x, t, y: (x, t[:1], y), "t, y: shapes"),
        (lambda x, t, y: (x, t, y.astype(np.float32)), "y: dtype float32"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    with pytest.raises(BadInput, match=message):
        model(*change(*batch(spec)))


def test_meta_round_trip():
    meta = Meta("file.pt", "00ff", ("replace",), ("blocks[1].mixer",))
    assert Meta.from_dict({**meta.to_dict(), "later": 1}) == meta


def test_model_is_a_value():
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    other = model.replace(meta=Meta("elsewhere"))
    assert other.params is model.params
    assert "1 blocks, width 48" in repr(model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.spec = spec  # type: ignore[misc]


def test_spec_round_trip_and_hash():
    spec = dit_spec(input_size=8, patch_size=2, hidden_size=48, depth=2, num_heads=4)
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
