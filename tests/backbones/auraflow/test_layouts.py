"""AuraFlow's files: read and written bit for bit, true sizes recognised, what does not fit named in one line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.backbones.auraflow import auraflow_spec, variant
from graftax.backbones.auraflow.layouts import AuraFlowFile, DiffusersAuraFlow
from graftax.backbones.auraflow.variants import VARIANTS
from graftax.checkpoint.tensors import read_tensors
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensor_shapes
from graftax.surgery import graft, lora, replace, resize, skip
from graftax.testing import assert_trees_close, random_params

GOLDENS = Path(__file__).parents[2] / "goldens" / "auraflow"
ORIGINAL, FOLDER = GOLDENS / "original.safetensors", GOLDENS / "diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLD = {"num_heads": 2}


def tensors_of(path):
    return dict(read_tensors(path)[0])


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_both_files_hold_the_same_model():
    """The last modulation's halves stand in the other order in diffusers."""
    original, folder = graftax.load(ORIGINAL, **TOLD), graftax.load(FOLDER)
    assert original.spec == folder.spec
    assert original.spec.image_shape == (16, 16, 4)  # all positions of its table, whatever sample_size says
    assert_trees_close(original.params, folder.params, rtol=0, atol=0)
    assert original.meta.source == "original.safetensors"


def test_the_authors_file_there_and_back(tmp_path):
    model = graftax.load(ORIGINAL, **TOLD)
    expected = tensors_of(ORIGINAL)
    for file in ("back.safetensors", "back.pth"):
        graftax.export(model, tmp_path / file)
        assert_same_tensors(tensors_of(tmp_path / file), expected)
        assert graftax.load(tmp_path / file).spec == model.spec  # it carries its spec
    save_file({name.removeprefix("model."): array for name, array in expected.items()}, tmp_path / "bare.safetensors")
    again = graftax.load(tmp_path / "bare.safetensors", **TOLD)
    assert again.spec == model.spec
    assert_trees_close(again.params, model.params, rtol=0, atol=0)


def test_a_folder_of_diffusers_there_and_back(tmp_path):
    model = graftax.load(FOLDER)
    graftax.export(model, tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back" / WEIGHTS), tensors_of(FOLDER / WEIGHTS))
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER, tmp_path / "back"))
    del theirs["_diffusers_version"]
    assert ours == {**theirs, "sample_size": 16}
    assert graftax.load(tmp_path / "back").spec == model.spec


def test_from_one_format_to_the_other(tmp_path):
    graftax.export(graftax.load(ORIGINAL, **TOLD), tmp_path / "folder")
    assert_same_tensors(tensors_of(tmp_path / "folder" / WEIGHTS), tensors_of(FOLDER / WEIGHTS))
    graftax.export(graftax.load(FOLDER), tmp_path / "file.safetensors")
    assert_same_tensors(tensors_of(tmp_path / "file.safetensors"), tensors_of(ORIGINAL))


def test_a_pipeline_and_shards(tmp_path):
    part = tmp_path / "pipeline" / "transformer"
    shutil.copytree(FOLDER, part)
    tensors = {name: np.array(array) for name, array in load_file(part / WEIGHTS).items()}
    (part / WEIGHTS).unlink()
    names, where = sorted(tensors), {}
    for i, chosen in enumerate((names[::2], names[1::2])):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, part / shard)
        where |= dict.fromkeys(chosen, shard)
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
    model = graftax.load(tmp_path / "pipeline")
    assert_trees_close(model.params, graftax.load(FOLDER).params, rtol=0, atol=0)


def test_a_bundle_with_other_networks(tmp_path):
    """Their tensors are not read, of whatever type they are."""
    more = {"vae.decoder.conv_in.weight": np.ones(3, np.float32), "text_encoders.t5.transformer.ids": np.ones(3, np.int64)}
    save_file({**load_file(ORIGINAL), **more}, tmp_path / "bundle.safetensors")
    model = graftax.load(tmp_path / "bundle.safetensors", **TOLD)
    assert_trees_close(model.params, graftax.load(ORIGINAL, **TOLD).params, rtol=0, atol=0)


@pytest.mark.slow
def test_diffusers_reads_what_we_write(tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    spec = auraflow_spec(
        input_size=8, joint=2, single=3, hidden_size=24, num_heads=3, positions=25, text_width=12, text_tokens=6
    )
    model = Model(spec, random_params(spec, jax.random.key(0)))
    graftax.export(model, tmp_path / "folder")
    theirs = diffusers.AuraFlowTransformer2DModel.from_pretrained(tmp_path / "folder")
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((2, 6, 10, 4), np.float32), rng.standard_normal((2, 5, 12), np.float32)
    t = np.array([0.2, 0.9], np.float32)
    with torch.no_grad():
        out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(text), torch.tensor(t)).sample.numpy()
    expected = out.transpose(0, 2, 3, 1)
    assert np.abs(model(x, t, text=text) - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_true_sizes_are_recognised_without_overrides(name):
    spec = variant(name)
    for layout in (AuraFlowFile(), DiffusersAuraFlow()):
        shapes, config = tensor_shapes(layout, spec), layout.config(spec)
        assert layout.fits(shapes, config)
        assert layout.spec(shapes, config, {}) == spec
        assert len(shapes) == 331  # as in the published files
        layout.check(spec)


def test_the_users_sizes():
    spec = graftax.load(ORIGINAL, **TOLD, input_size=12, text_tokens=6).spec
    assert (spec.image_shape, spec.sizes.text) == ((12, 12, 4), 14)
    assert graftax.load(FOLDER, input_size=12, text_tokens=6).spec == spec


# --- What does not fit -------------------------------------------------------------------------------------------------


def change(name, shape):
    """A change that makes a tensor one of ones of this shape, None: takes it out."""

    def on(tensors):
        tensors.pop(f"model.{name}", None)
        if shape is not None:
            tensors[f"model.{name}"] = np.ones(shape, np.float32)

    return on


@pytest.mark.parametrize(
    ("alter", "told", "message"),
    [
        (change("modF.1.weight", None), TOLD, "tensors missing: modF.1.weight"),
        (change("double_layers.1.attn.w2k.weight", None), TOLD, "tensors missing: double_layers.1.attn.w2k.weight"),
        (change("single_layers.3.mlp.c_proj.weight", (16, 9)), TOLD, r"single_layers.3.mlp.c_proj.weight \(16, 9\) \(exp"),
        (change("init_x_linear.bias", (17,)), TOLD, r"tensors mis-shaped: init_x_linear.bias \(17,\) \(expected"),
        (change("init_x_linear.weight", (16, 15)), TOLD, "init_x_linear.weight: 15 numbers to a token, expected a multiple"),
        (change("positional_encoding", (1, 63, 16)), TOLD, "positional_encoding: 63 positions, expected a square number"),
        (change("positional_encoding", (64, 16)), TOLD, r"positional_encoding \(64, 16\) \(expected 3 axes\)"),
        (change("more", (1,)), TOLD, "tensors unexpected: more"),
        (lambda t: None, {}, "num_heads: not stored in tensors and width 16 is no published AuraFlow's"),
        (lambda t: None, {"num_heads": 3}, "num_heads: 3 does not divide the width 16"),
        (lambda t: None, {**TOLD, "input_size": 18}, "9x9 tokens, expected at most 8x8, the table of positions"),
        (lambda t: None, {**TOLD, "input_size": "a"}, "input_size: got 'a', expected a positive integer"),
        (lambda t: None, {**TOLD, "compat": "dit"}, "override 'compat': not known"),
        (lambda t: None, {**TOLD, "qk_norm": "rms"}, "override qk_norm='rms': the file has 'layer' in blocks"),
    ],
)
def test_files_that_do_not_fit_are_refused(alter, told, message, tmp_path):
    tensors = dict(load_file(ORIGINAL))
    alter(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "changed.safetensors", **told)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        ({"num_mmdit_layers": 4}, "config.json num_mmdit_layers: 4, but the weights say 3"),
        ({"pos_embed_max_size": 100}, "pos_embed_max_size: 100, but the weights say 64"),
        ({"attention_head_dim": 16}, "attention_head_dim: 16, but the weights say 8"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ({"patch_size": None}, "patch_size: None, expected a positive integer"),
        ({"patch_size": 3}, "pos_embed.proj.weight: 16 numbers to a token, expected a multiple of 9"),
        ({"out_channels": 8}, "out_channels: 8, but the weights say 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(altered, message, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **altered}))
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "folder")
    assert "\n" not in str(refused.value)


def test_what_no_file_holds(tmp_path):
    model = graftax.load(FOLDER)
    for edit, message in (
        (skip(1, 2), "no program and no adapters"),
        (lora("aura_joint[0].attn", rank=2), "no program and no adapters"),
        (replace("aura_single[1].mixer", "hyena_x"), "expected a plain AuraFlow"),
        (resize("aura_joint[0].img/mlp", 3.0), "expected a plain AuraFlow"),
    ):
        student = graft(model, edit, jax.random.key(0))
        for path in ("file.safetensors", "folder"):
            with pytest.raises(BadInput, match=message):
                graftax.export(student, tmp_path / path)
            assert not (tmp_path / path).exists()


def test_channel_mixers_of_another_width_fit_the_authors_file_alone(tmp_path):
    student = graft(graftax.load(FOLDER), resize("blocks[*].channel", 3.0), jax.random.key(0))
    graftax.export(student, tmp_path / "file.safetensors")
    save_file(load_file(tmp_path / "file.safetensors"), tmp_path / "bare.safetensors")
    assert graftax.load(tmp_path / "bare.safetensors", **TOLD).spec == student.spec
    with pytest.raises(BadInput, match=r"got \(48, 8\) for hidden width and registers, expected its own \(256, 8\)"):
        graftax.export(student, tmp_path / "folder")
