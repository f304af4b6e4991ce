"""Published sizes, initialisation, the Flax facade, and the parts around the blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.dit import dit_spec, variant
from graftax.backbones.dit.variants import PATCHES, RESOLUTIONS, SIZES
from graftax.backbones.embedders import FinalLayer, sinusoidal_positions, timestep_features
from graftax.errors import BadInput
from graftax.models import Meta, Model, Network, forward, init, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import count_params
from graftax.ops.norms import layer_norm
from graftax.spec import Sizes, op
from graftax.testing import random_params, tiny_spec

ROUNDED = {"S": 33, "B": 130, "L": 458, "XL": 675}
"""Millions of parameters in DiT, Table 4, for patch size 2."""


def batch(spec, size=2):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, *spec.image_shape), np.float32)
    return x, np.linspace(0, 999, size, dtype=np.float32), np.arange(size)


def conditions(spec, size=2):
    x, t, y = batch(spec, size)
    return x, t, {"y": y}


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
    assert {name: variant(f"DiT-{name}/2").sizes.heads for name in SIZES} == {"S": 6, "B": 12, "L": 16, "XL": 16}


def test_initialisation_is_that_of_dit():
    spec = tiny_spec(depth=1)
    params = jax.jit(init, static_argnums=0)(spec, jax.random.key(0))
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
    np.testing.assert_array_equal(params["pos_embed"], sinusoidal_positions(48, (4, 4)))
    # Gates at zero: blocks do nothing, and the output layer answers zero.
    out, taps = jax.jit(lambda p: forward(spec, p, *conditions(spec), capture=("block/out", "mixer/in")))(params)
    assert not out.any()
    assert taps["mixer/in"].any()


def test_facade():
    spec = tiny_spec(depth=1)
    x, t, y = batch(spec)
    module = Network(spec)
    shapes = jax.eval_shape(module.init, jax.random.key(0))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, param_shapes(spec))
    params = random_params(spec, jax.random.key(0))
    out = jax.jit(module.apply)({"params": params}, x, t, y)
    np.testing.assert_allclose(out, Model(spec, params)(x, t, y), rtol=1e-5, atol=1e-5)
    table = module.tabulate(jax.random.key(0), console_kwargs={"width": 200})
    assert all(name in table for name in ("x_embedder", "blocks/00/mixer", "final"))


@pytest.mark.parametrize(("width", "grid"), [(48, (4, 4)), (8, (3, 5))])
def test_position_table_is_its_formula(width, grid):
    table = sinusoidal_positions(width, grid)
    assert table.shape == (1, grid[0] * grid[1], width)
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                expected = [math.sin(column * w), math.cos(column * w), math.sin(row * w), math.cos(row * w)]
                np.testing.assert_allclose(table[0, row * grid[1] + column, i::quarter], expected, atol=1e-6)


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


@pytest.mark.parametrize("grid", [pytest.param((4, 4), marks=pytest.mark.slow), (2, 6)], ids=["square", "not square"])
def test_patches_and_pixels_are_in_raster_order(grid):
    """A model whose blocks do nothing, whose head copies its first token channels: pixels come out where they went in."""
    h, w = grid
    spec = tiny_spec(hidden_size=64, depth=1, learn_sigma=False).replace(sizes=Sizes(64, 4, 16, grid))
    assert spec.image_shape == (2 * h, 2 * w, 4)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), param_shapes(spec))
    params["x_embedder"]["kernel"] = jnp.eye(16, 64).reshape(2, 2, 4, 64)
    params["final"]["linear"]["kernel"] = jnp.eye(64, 16)
    x, t, cond = conditions(spec)
    out, taps = jax.jit(lambda p: forward(spec, p, x, t, cond, capture=("block/out",)))(params)
    corners = [(r, c) for r in range(0, 2 * h, 2) for c in range(0, 2 * w, 2)]
    patches = np.stack([x[:, r : r + 2, c : c + 2].reshape(2, -1) for r, c in corners], axis=1)
    np.testing.assert_allclose(taps["block/out"][0, ..., :16], patches, atol=1e-6)
    normed = np.asarray(layer_norm(taps["block/out"][0]))[..., :16].reshape(2, h, w, 2, 2, 4)
    np.testing.assert_allclose(out, normed.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape), atol=1e-6)


def test_the_head_takes_a_vector_for_every_token():
    head = FinalLayer(2, 4, (4, 4))
    rng = np.random.default_rng(0)
    x, vec = rng.standard_normal((2, 16, 8), np.float32), rng.standard_normal((2, 8), np.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)),
        jax.eval_shape(head.init, jax.random.key(0), x, vec),
    )
    run = jax.jit(head.apply)
    each = np.broadcast_to(vec[:, None], (2, 16, 8))
    np.testing.assert_allclose(run(variables, x, each), run(variables, x, vec), rtol=1e-5, atol=1e-5)


def test_class_and_time_count():
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    x, t, y = batch(spec)
    base = model(x, t, y)
    assert np.abs(model(x, t, y + 1) - base).max() > 1e-3
    assert np.abs(model(x, t + 0.5, y) - base).max() > 1e-3
    assert np.isfinite(model(x, t, np.full(2, spec.classes))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, y: (x[:, :4], t, y), r"x: shape \(2, 4, 8, 4\), expected \(b, 8, 8, 4\)"),
        (lambda x, t, y: (x[0], t, y), r"x: float32\(8, 8, 4\), expected floats \(b, h, w, c\)"),
        (lambda x, t, y: (x.astype(int), t, y), "x: int32"),
        (lambda x, t, y: (x, t[:1], y), r"t: float32\(1,\), expected numbers \(2,\)"),
        (lambda x, t, y: (x, t + 1000, y), r"t: \[1000\.0, 1999\.0\], expected times in \[0, 1000\)"),
        (lambda x, t, y: (x, t, y.astype(np.float32)), r"y: float32\(2,\), expected class ids"),
        (lambda x, t, y: (x, t, y[:1]), r"y: int32\(1,\), expected class ids"),
        (lambda x, t, y: (x, t, y + 10), r"y: \[10, 11\], expected classes 0\.\.9, or 10 for none"),
        (lambda x, t, y: (x, t, y - 1), r"y: \[-1, 0\], expected classes"),
        (lambda x, t, y: (x, t), r"conditions: got \[\], expected y alone"),
        (lambda x, t, y: (x * np.nan, t, y), "x: holds NaN"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    with pytest.raises(BadInput, match=message):
        model(*change(*batch(spec)))


def test_conditions_that_a_dit_does_not_know():
    spec = tiny_spec(depth=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    with pytest.raises(BadInput, match=r"conditions: got \['text', 'y'\], expected y alone"):
        model(*batch(spec), text=np.zeros((2, 3, 8), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "frame colour: not known"), ({"classes": 0}, "frame classes: got 0"),
        ({"classes": True}, "frame classes: got True"), ({"compat": "timm"}, "frame compat: got 'timm'"),
    ],
)  # fmt: skip
def test_frames_that_are_no_dits(change, message):
    spec = tiny_spec(depth=1)
    with pytest.raises(BadInput, match=message):
        find(spec).check(spec.with_frame(**change))
    with pytest.raises(BadInput, match="expected image tokens, no text"):
        find(spec).check(spec.replace(sizes=Sizes(48, 4, 12, (4, 4), text=3)))


def test_conditioning_vectors_cover_times_and_classes():
    spec = tiny_spec(depth=1)
    params = random_params(spec, jax.random.key(0))
    found = find(spec).vectors(spec, params, 200)
    assert 200 <= len(found) <= 220
    assert len(np.unique(np.asarray(found), axis=0)) == len(found)
    null = find(spec).null(spec, params, {"y": jnp.array([1, 2])})
    np.testing.assert_array_equal(null["y"], [10, 10])
    assert find(spec).example(spec, 3)["y"].shape == (3,)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 9}, "input_size 9 is not a multiple of patch_size 2"),
        ({"hidden_size": 50}, "hidden_size 50 is not a multiple of num_heads 4"),
        ({"depth": 0}, "depth: got 0"), ({"num_classes": 1.5}, "num_classes: got 1.5"), ({"compat": "x"}, "compat: got 'x'"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_together(change, message):
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 48, "depth": 2, "num_heads": 4}
    with pytest.raises(BadInput, match=message):
        dit_spec(**{**sizes, **change})


def test_rotary_positions_and_an_rms_norm_of_the_output_are_options_of_the_frame():
    attention = op("mha_normed", qk_norm="none")
    spec = tiny_spec(mixer=attention, depth=1, hidden_size=16, num_heads=2).with_frame(rope=True, final_rms=True)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    assert model.params["final"]["scale"].shape == (16,)
    assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((2, 8, 8, 4), np.float32), np.array([3.0, 900.0]), np.array([0, 10])
    _, context = find(spec).embed(spec, model.params, x, t, {"y": y}, None)
    cos, sin = context.rope
    assert cos.shape == sin.shape == (16, 4)  # token 14 is in row 3 and column 2; two frequencies for either
    np.testing.assert_allclose((cos[14, 1], sin[14, 3]), (np.cos(3 * 0.01), np.sin(2 * 0.01)), rtol=1e-6)
    plain = Model(spec.with_frame(rope=False), model.params)
    assert np.abs(model(x, t, y) - plain(x, t, y)).max() > 1e-3
    with pytest.raises(BadInput, match="frame rope: heads of 6 channels, expected a multiple of 4"):
        find(spec).check(tiny_spec(hidden_size=12, num_heads=2).with_frame(rope=True))
    with pytest.raises(BadInput, match="frame final_rms: got 2, expected true or false"):
        find(spec).check(spec.with_frame(final_rms=2))
