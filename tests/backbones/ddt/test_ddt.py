"""DDTs against the authors' code: outputs, stages, modulation by token; files both ways; refusals; published models."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.ddt import ddt_spec, published, variant
from graftax.backbones.ddt.frame import rope, time_embed
from graftax.backbones.ddt.layouts import DDTFile
from graftax.backbones.ddt.variants import VARIANTS
from graftax.backbones.ddt.zoo import ZOO
from graftax.backbones.embedders import timestep_features
from graftax.backbones.zoo import find, spec_of
from graftax.blocks import bind, block_kind, build, part
from graftax.blocks.base import Context
from graftax.checkpoint import read_beside
from graftax.checkpoint.tensors import read_tensors, write_safetensors
from graftax.errors import BadInput
from graftax.models import Model, forward, param_shapes, random_params
from graftax.models.cost import count_params, flops
from graftax.models.layout import params_from, tensor_shapes, tensors_from
from graftax.models.library import Library
from graftax.models.stages import stages
from graftax.spec import Step
from graftax.surgery import graft, replace, reverse, select
from graftax.train.diffusion_task import diffusion_loss
from graftax.train.recipes import Recipe

GOLDENS = Path(__file__).parents[2] / "goldens" / "ddt"
TOLD = {"encoder_blocks": 2, "input_size": 8}


@functools.cache
def model():
    return graftax.load(GOLDENS / "ddt.ckpt", **TOLD)


@functools.cache
def golden():
    data = np.load(GOLDENS / "ddt.npz")
    return {name: data[name] for name in data.files}


def images(name):
    return golden()[name].transpose(0, 2, 3, 1)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def test_outputs_and_every_block():
    data = golden()
    assert model().spec == ddt_spec(input_size=8, hidden_size=32, depth=4, num_heads=4, encoder_blocks=2, num_classes=10)
    out, taps = model().apply(images("x"), data["t"], data["y"], capture="block/out")
    assert relative(out, images("out")) < 2e-5
    for i in range(4):
        assert relative(taps["block/out"]["cond" if i < 2 else "img"][i], data[f"block_{i}"]) < 2e-5
    assert relative(timestep_features(data["t"], period=10.0), data["sinusoid"]) < 2e-6
    for table, name in zip(rope(model().spec.sizes), ("rope_cos", "rope_sin"), strict=True):
        assert relative(table, data[name]) < 2e-6


@pytest.mark.slow
def test_images_of_any_shape_and_weights_that_are_no_average():
    data = golden()
    assert relative(model()(images("x_rect"), data["t_rect"][None], data["y_rect"][None]), images("out_rect")) < 2e-5
    tensors = read_tensors(GOLDENS / "ddt.ckpt")[0]
    raw = {f"ema_{name}": array for name, array in tensors.items() if name.startswith("denoiser.")}
    net = model().replace(params=params_from(DDTFile(), model().spec, raw))
    assert relative(net(images("x"), data["t"], data["y"]), images("out_raw")) < 2e-5


def test_stages():
    data, two = golden(), stages(model().spec)
    assert [len(spec.program) for spec in two] == [2, 2]
    encoder, decoder = two.prepare(model().params)
    s = jax.jit(two.encode)(encoder, images("x"), data["t"], {"y": data["y"]})
    assert relative(jax.nn.silu(s), data["s"]) < 2e-5
    assert relative(jax.jit(two.decode)(decoder, images("x_second"), s), images("out_cached")) < 2e-5


def test_a_decoder_block_is_conditioned_by_token():
    """Their block gets what is behind the SiLU; a stream whose SiLU that is has no closed form, so the layer is given it."""
    data, spec = golden(), model().spec
    kind, weights = spec.blocks[1].kind, model().params["blocks"]["01"]
    context = Context(jnp.zeros((2, 32)), rope=rope(spec.sizes))
    run = {s: bind(build(spec, kind, s, op), part(weights, s), context) for s, op in spec.blocks[1].ops}
    run["adaln"] = lambda: data["blk_c"] @ weights["adaln"]["kernel"] + weights["adaln"]["bias"]  # (b, n, 6 d)
    state = {"img": data["blk_x"], "cond": data["blk_c"]}
    out = jax.jit(lambda state: block_kind("ddt_decoder")(run, state, context, ())[0])(state)
    assert relative(out["img"], data["blk1_out"]) < 2e-5


def test_there_and_back():
    tensors, source = read_tensors(GOLDENS / "ddt.ckpt")
    given = {name: array for name, array in tensors.items() if name.startswith("ema_denoiser.")}
    back = tensors_from(DDTFile(), model().spec, model().params)
    assert source.entry == "state_dict"
    assert back.keys() == given.keys()
    for key, array in given.items():
        np.testing.assert_array_equal(back[key].view(np.int32), array.view(np.int32), err_msg=key)


def test_a_file_of_ours_comes_back(tmp_path):
    graftax.export(model(), tmp_path / "back.pt")
    again = graftax.load(tmp_path / "back.pt", **TOLD)
    assert again.spec == model().spec
    for a, b in zip(*(jax.tree.leaves(one.params) for one in (again, model())), strict=True):
        np.testing.assert_array_equal(a, b)


SPEC = ddt_spec(input_size=4, hidden_size=16, depth=4, num_heads=2, encoder_blocks=2, num_classes=5)


@functools.cache
def small():
    return Model(SPEC, random_params(SPEC, jax.random.key(0)))


@functools.cache
def grafted():
    net = graft(small(), replace("ddt_decoder[*].mixer", "hyena_x", kernel=2), rng=jax.random.key(1))
    return graft(net, replace("blocks[1].mixer", "swa", window=2), rng=jax.random.key(1))


def test_any_mixer_fits():
    net = grafted()
    assert [str(site) for site in select("ddt_encoder[-1].mlp", SPEC)] == ["blocks[1].mlp"]
    assert count_params(net.spec) == sum(leaf.size for leaf in jax.tree.leaves(net.params))
    layout = DDTFile()
    tensors = tensors_from(layout, net.spec, net.params)
    assert tensors["ema_denoiser.blocks.2.attn.in_proj.weight"].shape == (48, 16)
    again = layout.spec({name: array.shape for name, array in layout.own(tensors).items()}, {}, {**TOLD, "input_size": 4})
    assert again.blocks[2:] == net.spec.blocks[2:]


@pytest.mark.slow
@pytest.mark.parametrize("program", [((1, 2), (3,)), ((3,), (2,), (1,), (0,)), ((0, 2), (3,))])
def test_any_program_is_well_typed(program):
    """Over the border at once, backwards, with loops; as code, and as data."""
    net, rng = grafted(), np.random.default_rng(0)
    data = rng.standard_normal((2, 4, 4, 4), np.float32), np.array([0.1, 0.9], np.float32), {"y": np.array([0, 5])}
    spec = net.spec.replace(program=tuple(Step(blocks, "sum", loops=len(blocks)) for blocks in program))
    out = jax.jit(lambda params: forward(spec, params, *data)[0])(net.params)
    library = Library((net.spec,))
    found = jax.jit(library.forward)(library.prepare(net.params), library.encode(spec.program), *data)
    np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-5)
    assert np.abs(out).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.3.mlp.w3.weight": None}, "blocks.3.mlp: no known operator .* missing .*blocks.3.mlp.w3.weight"),
        ({"blocks.0.attn.q_norm.weight": np.ones(7, np.float32)}, r"blocks.0.attn.q_norm.weight \(7,\): expected \(k,\)"),
        ({"s_embedder.proj.weight": np.ones((32, 15), np.float32)}, r"s_embedder.proj.weight \(32, 15\) and .* \(d, 4 c\)"),
        ({"pos_embed": np.ones((1, 16, 32), np.float32)}, "tensors unexpected: pos_embed"),
        ({"blocks.2.adaLN_modulation.0.bias": None}, "blocks.2.adaLN_modulation: no known operator .* missing"),
    ],
)
def test_wrong_files_are_answered_in_one_line(change, message, tmp_path):
    tensors = {**DDTFile().own(read_tensors(GOLDENS / "ddt.ckpt")[0]), **change}
    file = tmp_path / "wrong.safetensors"
    write_safetensors(file, {name: array for name, array in tensors.items() if array is not None}, {})
    with pytest.raises(BadInput, match=message) as caught:
        graftax.load(file, **TOLD)
    assert "\n" not in str(caught.value)


def test_what_is_refused():
    for told, message in (
        ({}, "encoder_blocks: not stored in tensors and width 32 is no published DDT's"),
        ({"encoder_blocks": 4}, r"encoder_blocks: got 4, expected 1..3 of the 4 blocks"),
        ({"encoder_blocks": 2, "input_size": 9}, "input_size=9: expected a multiple of the patch 2"),
    ):
        with pytest.raises(BadInput, match=message):
            graftax.load(GOLDENS / "ddt.ckpt", **told)
    with pytest.raises(BadInput, match=r"blocks\[3\].adaln: adaln_shared, expected another"):
        graft(small(), replace("blocks[3].adaln", "adaln_shared"), rng=jax.random.key(0))
    with pytest.raises(BadInput, match="two stages: a ddt of 4 steps, expected an encoder's, then a decoder's"):
        stages(reverse(0, 4).on(SPEC))
    with pytest.raises(BadInput, match=r"x: shape \(1, 5, 4, 4\), expected \(b, h, w, 4\), h and w multiples"):
        small()(np.zeros((1, 5, 4, 4)), np.zeros(1), np.zeros(1, int))
    with pytest.raises(BadInput, match="encoder_blocks: got 4 of 4"):
        ddt_spec(input_size=4, hidden_size=16, depth=4, num_heads=2, encoder_blocks=4)


def test_published_models():
    counts = {"DDT-XL/2": 674_646_352, "DDT-L/2": 457_648_144, "DDT-B/2": 130_262_800}
    kinds = {"DDT-XL/2": (22, 6), "DDT-L/2": (20, 4), "DDT-B/2": (8, 4)}
    for name in VARIANTS:
        spec = variant(name)
        assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec))) == counts[name]
        found = [block.kind for block in spec.blocks]
        assert (found.count("ddt_encoder"), found.count("ddt_decoder")) == kinds[name]
        shapes = DDTFile().own({f"ema_denoiser.{key}": shape for key, shape in tensor_shapes(DDTFile(), spec).items()})
        assert DDTFile().spec(shapes, {}, {}) == spec
    two = stages(variant("DDT-XL/2"))
    macs = [round(flops(spec, head=spec is two.decoder) / 2e9, 1) for spec in two]
    assert macs == pytest.approx([93.2, 38.3], abs=0.1)  # of the authors' code, without its softmax
    for name, entry in ZOO.items():
        assert (entry.spec(), entry.params) == (variant("DDT-XL/2", entry.resolution), counts["DDT-XL/2"])
        assert entry.flops == flops(entry.spec())
        assert "all rights reserved" in entry.licence
        assert published(f"{name}/model.ckpt") is find(f"MCG-NJU/{name}") is entry
        assert spec_of(name) == entry.spec()
    assert time_embed(8).period == 10


@pytest.mark.slow
def test_losses_of_the_authors():
    """Flow matching, and REPA behind a block of the encoder: its stream is what the loss looks at."""
    data, beside = np.load(GOLDENS / "sampling.npz"), read_beside(GOLDENS / "ddt.ckpt")
    layers = (("fc1", 0), ("fc2", 2), ("fc3", 4))
    found = {name: [beside[f"diffusion_trainer.proj.0.{i}.{leaf}"] for leaf in ("weight", "bias")] for name, i in layers}
    head = {name: {"kernel": weight.T, "bias": bias} for name, (weight, bias) in found.items()}
    recipe = Recipe.parse("repa(2, width=20, hidden=32)")
    loss = diffusion_loss(model().spec, class_dropout=0.0, recipe=recipe)
    batch = {
        "image": data["loss_x_data"].transpose(0, 2, 3, 1), "noise": data["loss_x_noise"].transpose(0, 2, 3, 1),
        "t": 1 - data["loss_t"], "cond": {"y": data["loss_y"]}, "drop": np.zeros(4, bool),
        "recipe": {"policy": {}, "arrays": {"repa": {"features": data["loss_feat"]}}},
    }  # fmt: skip
    total, found = jax.jit(loss.given)({**model().params, "heads": {"repa": head}}, batch)
    assert relative(found["mse"], data["loss_fm"]) < 2e-5
    assert abs(float(found["repa"]) - (float(data["loss_cos"]) - 1)) < 1e-5
    assert abs(float(total) - (float(data["loss_total"]) - 0.5)) < 2e-5
