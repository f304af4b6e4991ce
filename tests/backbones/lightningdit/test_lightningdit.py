"""LightningDiTs against the authors' code: outputs, taps, samples; files both ways; what is refused; published models."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.backbones.lightningdit import lightningdit_spec, published, variant
from graftax.backbones.lightningdit.layouts import TABLES, LightningDiTFile
from graftax.backbones.lightningdit.variants import VARIANTS
from graftax.backbones.lightningdit.zoo import ZOO
from graftax.backbones.zoo import find, spec_of
from graftax.checkpoint.tensors import read_tensors, write_safetensors
from graftax.errors import BadInput
from graftax.models import Model, param_shapes, random_params
from graftax.models.cost import count_params, count_trainable, flops
from graftax.models.layout import params_from, tensor_shapes, tensors_from
from graftax.surgery import graft, replace

GOLDENS = Path(__file__).parents[2] / "goldens" / "lightningdit"
SWITCHES = {
    "plain": {}, "qknorm": {"qk_norm": True}, "woshift": {"shift": False}, "qk_wos": {"qk_norm": True, "shift": False},
    "plain_qk": {"swiglu": False, "rope": False, "rmsnorm": False, "qk_norm": True},
    "learnsig_p2": {"learn_sigma": True, "patch_size": 2},
}  # fmt: skip
QUICK = ("plain", "plain_qk", "qk_wos")
RUNS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SWITCHES]


@functools.cache
def model(name="plain"):
    layout = "lightningdit" if name == "plain_qk" else None  # which has none of the marks
    return graftax.load(GOLDENS / f"{name}.pt", layout, num_heads=4 if name == "plain" else 2)


def golden(name):
    return np.load(GOLDENS / f"{name}.npz")


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", RUNS)
def test_outputs_and_taps(name):
    data, net = golden(name), model(name)
    scale = 2 if name == "plain" else 1
    sizes = {"hidden_size": 24 * scale, "depth": 2 * scale, "num_heads": 2 * scale, "patch_size": 1, **SWITCHES[name]}
    assert net.spec == lightningdit_spec(input_size=8, in_channels=8, num_classes=10, **sizes)
    names = ("block/out", "mixer/out", "mlp/out")
    out, taps = net.apply(data["x"].transpose(0, 2, 3, 1), data["t"], data["y"], capture=names)
    assert relative(out.transpose(0, 3, 1, 2), data["out"]) < 2e-5  # of `learnsig_p2` the velocity alone
    for i, found in enumerate(taps["block/out"]):
        assert relative(found, data[f"block_{i}"]) < 2e-5
    if name == "plain":
        assert relative(taps["mixer/out"][0], data["block_0_attn"]) < 2e-5
        assert relative(taps["mlp/out"][0], data["block_0_mlp"]) < 2e-5


@pytest.mark.parametrize("name", SWITCHES)
def test_there_and_back(name):
    layout, (tensors, source) = LightningDiTFile(), read_tensors(GOLDENS / f"{name}.pt")
    back = tensors_from(layout, model(name).spec, model(name).params)
    given = layout.own(tensors)
    assert source.entry == "ema"
    assert back.keys() == given.keys()
    for key, array in given.items():
        if key in TABLES:  # computed in float64 here
            np.testing.assert_allclose(back[key], array, atol=2e-6)
        else:
            np.testing.assert_array_equal(back[key].view(np.int32), array.view(np.int32), err_msg=key)


def slow(*row):
    return pytest.param(*row, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("shift", "interval", "key"),
    [
        (1 / 0.3, 0.11, "shift0.3.cfg6.7.interval1.start0.11"), slow(1.0, 0.0, "shift0.0.cfg6.7.interval0.start0.0"),
        slow(1 / 0.3, 0.0, "shift0.3.cfg6.7.interval0.start0.0"), slow(1.0, 0.11, "shift0.0.cfg6.7.interval1.start0.11"),
        slow(1.0, 0.3, "shift0.0.cfg6.7.interval1.start0.3"), slow(1 / 0.3, 0.3, "shift0.3.cfg6.7.interval1.start0.3"),
    ],
)  # fmt: skip
def test_samples(shift, interval, key):
    """Nine points, guided on three of eight channels, from a data fraction on; they shift fractions of the data by 0.3."""
    data = golden("sampling")
    noise, told = data["z"].transpose(0, 2, 3, 1), (0.0, (1 - interval) / interval) if interval else None
    images = graftax.sample(model(), data["y"], initial_noise=noise, steps=8, shift=shift, interval=told)
    assert relative(images, data[f"sample.{key}"].transpose(0, 2, 3, 1)) < 1e-4
    how = graftax.diffusion.Sampling(sampler="euler", steps=8, cfg_scale=1, shift=shift)
    np.testing.assert_allclose(1 - how.times, data[f"grid.{key[:8]}"], atol=1e-6)


def test_any_mixer_fits():
    spec = lightningdit_spec(
        input_size=4, patch_size=1, in_channels=3, hidden_size=16, depth=4, num_heads=2, num_classes=5, shift=False
    )  # fmt: skip
    net = Model(spec, random_params(spec, jax.random.key(0)))
    for edit in (
        replace("blocks[0].mixer", "hyena_x", kernel=4), replace("blocks[1].mixer", "swa", window=2),
        replace("blocks[2].mlp", "swiglu", ratio=2, bias=True),
    ):  # fmt: skip
        net = graft(net, edit, rng=jax.random.key(1))
    assert count_params(net.spec) == sum(leaf.size for leaf in jax.tree.leaves(net.params))
    assert len(net.meta.sites) == 3
    layout = LightningDiTFile()
    tensors = tensors_from(layout, net.spec, net.params)
    assert tensors["blocks.0.adaLN_modulation.1.weight"].shape == (64, 16)
    for a, b in zip(*(jax.tree.leaves(tree) for tree in (params_from(layout, net.spec, tensors), net.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(BadInput, match=r"blocks\[3\].mixer is mha, which LightningDiT's code would give rotary positions"):
        layout.check(graft(net, replace("blocks[3].mixer", "mha"), rng=jax.random.key(1)).spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.mlp.w12.bias": None}, r"blocks.1.mlp: no known operator .* missing blocks.1.mlp.w12.bias"),
        ({"blocks.1.mlp.w12.weight": np.zeros((100, 24), np.float32)}, r"mis-shaped: blocks.1.mlp.w12.bias \(128,\) \(exp"),
        ({"blocks.0.attn.q_norm.weight": None}, "blocks.0.attn: no known operator .* unexpected blocks.0.attn.k_norm"),
        ({"feat_rope.freqs_cos": np.ones((64, 12), np.float32)}, "not those that everybody computes: feat_rope.freqs_cos"),
        ({"final_layer.norm_final.bias": np.zeros(24, np.float32)}, "tensors unexpected: final_layer.norm_final.bias"),
        ({"t_embedder.mlp.0.bias": None}, "tensors missing: t_embedder.mlp.0.bias"),
    ],
)
def test_wrong_files_are_answered_in_one_line(change, message, tmp_path):
    tensors = {**LightningDiTFile().own(read_tensors(GOLDENS / "qknorm.pt")[0]), **change}
    file = tmp_path / "wrong.safetensors"
    write_safetensors(file, {name: array for name, array in tensors.items() if array is not None}, {})
    with pytest.raises(BadInput, match=message) as caught:
        graftax.load(file, num_heads=2)
    assert "\n" not in str(caught.value)


def test_what_contradicts_the_file():
    for told, message in (
        ({"rope": False}, "override rope=False: the file has feat_rope.freqs_cos"),
        ({}, "num_heads: not stored in tensors and width 24 is no published LightningDiT's"),
        ({"num_heads": 2, "layout": "dit"}, "tensors unexpected|tensors missing"),
    ):
        with pytest.raises(BadInput, match=message):
            graftax.load(GOLDENS / "woshift.pt", **told)


def test_published_models():
    spec = variant("LightningDiT-XL/1")
    assert count_trainable(spec) == 674_961_824
    table = 256 * 1152
    assert count_params(spec) == 674_961_824 + table == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
    assert (spec.image_shape, spec.tokens) == ((16, 16, 32), 256)
    sizes = {"input_size": 16, "patch_size": 1, "hidden_size": 1152, "depth": 28, "num_heads": 16}
    assert count_trainable(lightningdit_spec(**sizes, shift=False)) == 600_579_488
    for name in VARIANTS:
        shapes = tensor_shapes(LightningDiTFile(), variant(name))
        tables = {table: (256, variant(name).sizes.head_dim) for table in TABLES}
        assert LightningDiTFile().spec({**shapes, **tables}, {}, {}) == variant(name)
    for name, entry in ZOO.items():
        assert (entry.spec(), entry.params, entry.flops) == (spec, count_params(spec), flops(spec))
        assert "MIT" in entry.licence
        assert published(f"{name}.pt") is find(name) is entry
        assert spec_of(name) == spec_of(f"hustvl/{name}") == spec
    with pytest.raises(BadInput, match="did you mean 'LightningDiT-XL/1'"):
        variant("LightningDit-XL/1")
