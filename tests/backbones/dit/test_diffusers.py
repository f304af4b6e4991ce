"""diffusers folders both ways, against diffusers itself on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import graftax
from graftax.backbones.dit import variant, with_compat
from graftax.backbones.dit.layouts import DiffusersDiT
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensor_shapes
from graftax.surgery import graft, lora, parallel, replace, resize
from graftax.testing import assert_trees_close, random_params, tiny_spec

WEIGHTS = "diffusion_pytorch_model.safetensors"
X = np.random.default_rng(0).standard_normal((4, 8, 8, 4)).astype(np.float32)
T, Y = np.array([1, 100, 500, 999]), np.array([0, 3, 10, 7])
EMB = "norm1.emb.timestep_embedder.linear_1.weight"


def transformer():
    """Their class, imported where it runs: it takes seconds, and every process collects this file."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel


@pytest.fixture(scope="module")
def theirs():
    """A small DiT of diffusers, no weight at zero, the embedders of all blocks equal as in converted checkpoints."""
    torch.manual_seed(0)
    model = transformer()(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weights in model.parameters():
            fan_in = weights[0].numel() if weights.ndim > 1 else 25
            weights.copy_(torch.randn_like(weights) / fan_in**0.5)
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


@pytest.fixture
def folder(theirs, tmp_path):
    """That model as diffusers saves it."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def output(model):
    with torch.no_grad():
        out = model(torch.tensor(X).permute(0, 3, 1, 2), torch.tensor(T), torch.tensor(Y)).sample
    return out.permute(0, 2, 3, 1).numpy()


def relative(found, expected):
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(np.asarray(found), expected, strict=True)]


def ours(**changes):
    spec = tiny_spec(compat="diffusers", **changes)
    return Model(spec, random_params(spec, jax.random.key(0)))


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_with_their_numerics_the_outputs_are_theirs(theirs, folder):
    model = graftax.load(folder, compat="diffusers")
    assert model.spec == tiny_spec(depth=3, compat="diffusers")
    assert model.meta.source == "theirs"
    np.testing.assert_allclose(model(X, T, Y), output(theirs), rtol=1e-5, atol=1e-5 * np.abs(output(theirs)).max())


def test_by_default_the_numerics_are_those_of_dit(theirs, folder):
    """The same weights; what deviates grows with t, as measured on DiT's sizes: 2e-4 at t = 1, 2e-2 at 100, 0.1 at 500."""
    model = graftax.load(folder)
    assert model.spec.option("compat") == "dit"
    found = relative(model(X, T, Y), output(theirs))
    assert found[0] < 3e-3
    assert 3e-3 < found[1] < 0.3
    assert 0.03 < found[2] < 1
    assert_trees_close(model.params, graftax.load(folder, compat="diffusers").params, rtol=0, atol=0)


def test_pipeline_folders_and_older_files(theirs, folder, tmp_path):
    expected = graftax.load(folder)
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    folder.rename(pipeline / "transformer")
    transformer = pipeline / "transformer"
    assert_trees_close(graftax.load(pipeline).params, expected.params, rtol=0, atol=0)
    torch.save(theirs.state_dict(), transformer / "diffusion_pytorch_model.bin")
    (transformer / WEIGHTS).unlink()
    config = json.loads((transformer / "config.json").read_text())
    del config["norm_eps"]  # files from before DiT had a class of its own
    (transformer / "config.json").write_text(json.dumps({**config, "_class_name": "Transformer2DModel"}))
    loaded = graftax.load(pipeline, compat="diffusers")
    assert_trees_close(loaded.params, expected.params, rtol=0, atol=0)


def test_half_precision_weights(folder):
    expected = graftax.load(folder).params["blocks"]["01"]["mixer"]["qkv"]["kernel"]
    set_weights(folder, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    found = graftax.load(folder).params["blocks"]["01"]["mixer"]["qkv"]["kernel"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.asarray(expected).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    "sizes", [pytest.param({}, marks=pytest.mark.slow), {"learn_sigma": False, "patch_size": 4, "depth": 1}]
)
def test_exported_folders_load_in_diffusers_with_equal_output(sizes, tmp_path):
    model = ours(**sizes)
    graftax.export(model, tmp_path / "out")
    loaded = transformer().from_pretrained(tmp_path / "out").eval()
    expected = np.asarray(model(X, T, Y))
    np.testing.assert_allclose(output(loaded), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    back = graftax.load(tmp_path / "out", compat="diffusers")
    assert back.spec == model.spec
    assert_trees_close(back.params, model.params, rtol=0, atol=1e-6)


def test_a_dit_file_becomes_a_folder_and_a_dit_file_again(tmp_path):
    model = ours()
    model = model.replace(spec=with_compat(model.spec, "dit"))
    graftax.export(model, tmp_path / "dit.pt")
    graftax.export(graftax.load(tmp_path / "dit.pt", num_heads=4, compat="diffusers"), tmp_path / "folder")
    graftax.export(graftax.load(tmp_path / "folder"), tmp_path / "again.pt")
    first, again = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("dit", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_compat_survives_in_our_folders_and_can_be_overridden(tmp_path):
    graftax.save(ours(), tmp_path / "model")
    assert graftax.load(tmp_path / "model").spec.option("compat") == "diffusers"
    assert graftax.load(tmp_path / "model", compat="dit").spec.option("compat") == "dit"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_eps": 1e-6}, "norm_eps: 1e-06, expected 1e-05, the one of compat 'diffusers'"),
        ({"activation_fn": "geglu"}, "activation_fn: geglu, expected gelu-approximate"),
        ({"norm_type": "layer_norm"}, "norm_type: layer_norm, expected ada_norm_zero"),
        ({"attention_bias": False}, "attention_bias: False, expected True"),
        ({"_class_name": "UNet2DConditionModel"}, "a 'UNet2DConditionModel', expected one of"),
        ({"num_layers": 10**9}, "num_layers: 1000000000, but the weights have 3 blocks"),
        ({"num_layers": None}, "num_layers: None, expected a positive integer"),
        ({"sample_size": 10**7}, "sample_size: 10000000, expected at most 1024"),
        ({"out_channels": 5}, "out_channels: 5, expected 4 or 8"),
        ({"num_attention_heads": 3}, r"pos_embed.proj.weight \(48, 4, 2, 2\) \(expected \(36, 4, 2, 2\)\)"),
        ({"patch_size": 4}, "tensors mis-shaped: pos_embed.proj.weight"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder, change, message):
    set_config(folder, **change)
    with pytest.raises(BadInput, match=message):
        graftax.load(folder, compat="diffusers")


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("proj_out_1.bias", "proj_out_9.bias"), "tensors missing: proj_out_1.bias"),
        (lambda tensors: tensors.update({"more": torch.zeros(2)}), "tensors unexpected: more"),
        (
            lambda tensors: tensors[f"transformer_blocks.1.{EMB}"][0].add_(1e-6),
            f"transformer_blocks.1.{EMB} differs from transformer_blocks.0.{EMB}: expected copies of one tensor",
        ),
        (
            lambda tensors: tensors.update({"transformer_blocks.2.attn1.to_k.weight": torch.zeros(12, 48)}),
            r"tensors mis-shaped: transformer_blocks.2.attn1.to_k.weight \(12, 48\) \(expected \(48, 48\)\)",
        ),
    ],
)
def test_weights_that_are_no_dit_are_refused(folder, change, message):
    set_weights(folder, change)
    with pytest.raises(BadInput, match=message):
        graftax.load(folder)


def test_folders_without_a_model_are_refused(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadInput, match="no weights, expected one of"):
        graftax.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="a list, expected an object of settings"):
        graftax.load(folder)


def test_overrides_must_not_contradict_the_config(folder):
    with pytest.raises(BadInput, match="override num_heads=8: the file says 4"):
        graftax.load(folder, num_heads=8)


def edited(edit):
    return graft(ours(), edit, jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ours().replace(spec=tiny_spec()), "the model has compat 'dit', and diffusers computes otherwise"),
        (lambda: edited(replace("blocks[1].mixer", "hyena_x")), "expected a plain DiT"),
        (lambda: edited(resize("blocks[1].mlp", 3)), "expected a plain DiT"),
        (lambda: edited(lora("blocks[1].mixer")), "expected a plain DiT"),
        (lambda: edited(parallel(1, 3)), "expected a plain DiT"),
        (
            lambda: ours().replace(params={**ours().params, "pos_embed": jnp.ones((1, 16, 48))}),
            "holds no table, and not the one that everybody computes: pos_embed",
        ),
    ],
)
def test_what_diffusers_would_compute_otherwise_is_not_exported(model, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        graftax.export(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_dit_files_do_not_hold_their_numerics(name, tmp_path):
    with pytest.raises(BadInput, match="the model has compat 'diffusers', with which DiT's code computes otherwise"):
        graftax.export(ours(), tmp_path / name)


def test_names_and_shapes_at_published_size():
    """The defaults of their class are DiT-XL/2."""
    with torch.device("meta"):
        model = transformer()(out_channels=8)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert tensor_shapes(DiffusersDiT(), variant("DiT-XL/2")) == expected
