"""SD3's files: read and written bit for bit, true sizes recognised, what does not fit named in one line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.backbones.sd3 import sd3_spec, variant
from graftax.backbones.sd3.layouts import DiffusersSD3, SD3File
from graftax.backbones.sd3.variants import VARIANTS
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensor_shapes
from graftax.surgery import graft, lora, replace, skip
from graftax.testing import assert_trees_close, random_params

GOLDENS = Path(__file__).parents[2] / "goldens" / "sd3"
TOLD = {"num_heads": 2, "input_size": 8}
FILE, WEIGHTS = "original.safetensors", "diffusion_pytorch_model.safetensors"
PREFIX = "model.diffusion_model."


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["sd3_medium", "sd35_medium"])
def test_the_authors_file_there_and_back(name, tmp_path):
    model = graftax.load(GOLDENS / name / FILE, **TOLD)
    graftax.export(model, tmp_path / "back.safetensors")
    assert_same_tensors(load_file(tmp_path / "back.safetensors"), load_file(GOLDENS / name / FILE))
    assert graftax.load(tmp_path / "back.safetensors").spec == model.spec  # it carries its spec


@pytest.mark.parametrize("name", ["sd3_medium", "sd35_medium"])
def test_a_folder_of_diffusers_there_and_back(name, tmp_path):
    model = graftax.load(GOLDENS / name / "diffusers")
    graftax.export(model, tmp_path / "back")
    assert_same_tensors(load_file(tmp_path / "back" / WEIGHTS), load_file(GOLDENS / name / "diffusers" / WEIGHTS))
    folders = (GOLDENS / name / "diffusers", tmp_path / "back")
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert {key: theirs[key] for key in ours} == ours
    assert graftax.load(tmp_path / "back").spec == model.spec


@pytest.mark.parametrize("name", ["sd3_medium", "sd35_medium"])
def test_one_layout_into_the_other(name, tmp_path):
    model = graftax.load(GOLDENS / name / FILE, **TOLD)
    graftax.export(model, tmp_path / "folder")
    assert_same_tensors(load_file(tmp_path / "folder" / WEIGHTS), load_file(GOLDENS / name / "diffusers" / WEIGHTS))
    again = graftax.load(tmp_path / "folder")
    assert again.spec == model.spec
    assert_trees_close(again.params, model.params, rtol=0, atol=0)


@pytest.mark.slow
def test_diffusers_opens_and_computes_the_same(tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    graftax.export(graftax.load(GOLDENS / "sd35_medium" / FILE, **TOLD), tmp_path / "folder")
    theirs = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "folder")
    given = {name: torch.from_numpy(array) for name, array in np.load(GOLDENS / "sd35_medium" / "io.npz").items()}
    with torch.no_grad():
        out = theirs(given["x"], given["text"], given["pooled"], given["t"], return_dict=False)[0]
    np.testing.assert_allclose(out, given["out"], atol=2e-5)


def test_a_bundle_and_a_file_without_the_prefix(tmp_path):
    own = load_file(GOLDENS / "sd35_medium" / FILE)
    others = {"first_stage_model.decoder.conv_in.bias": np.zeros(3, np.float32), "text_encoders.ids": np.zeros(3, np.int64)}
    save_file({**own, **others}, tmp_path / "bundle.safetensors")
    save_file({name.removeprefix(PREFIX): array for name, array in own.items()}, tmp_path / "bare.safetensors")
    expected = graftax.load(GOLDENS / "sd35_medium" / FILE, input_size=8)
    for name in ("bundle", "bare"):
        model = graftax.load(tmp_path / f"{name}.safetensors", input_size=8)  # norms of heads say how many there are
        assert model.spec == expected.spec
        assert_trees_close(model.params, expected.params, rtol=0, atol=0)


def test_a_pipeline_and_a_config_of_before_sd35(tmp_path):
    shutil.copytree(GOLDENS / "sd3_medium" / "diffusers", tmp_path / "pipeline" / "transformer")
    config = tmp_path / "pipeline" / "transformer" / "config.json"
    told = json.loads(config.read_text())
    del told["dual_attention_layers"], told["qk_norm"]
    config.write_text(json.dumps(told))
    model = graftax.load(tmp_path / "pipeline", text_tokens=9)
    assert model.spec.sizes.text == 9
    assert model.spec.blocks == graftax.load(GOLDENS / "sd3_medium" / "diffusers").spec.blocks


def test_the_table_of_positions_is_the_stored_one(tmp_path):
    stored = load_file(GOLDENS / "sd35_medium" / FILE)[f"{PREFIX}pos_embed"]
    model = graftax.load(GOLDENS / "sd35_medium" / FILE, **TOLD)
    np.testing.assert_array_equal(model.params["pos_embed"], stored)
    plain = graftax.load(GOLDENS / "sd3_medium" / FILE, **TOLD)  # this one is the sines and cosines of a fresh model
    fresh = random_params(plain.spec, jax.random.key(0))
    np.testing.assert_allclose(fresh["pos_embed"], plain.params["pos_embed"], atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_true_sizes_are_recognised_without_overrides(name):
    spec = variant(name)
    for layout in (SD3File(), DiffusersSD3()):
        assert layout.spec(tensor_shapes(layout, spec), layout.config(spec), {}) == spec


def test_numbers_of_tensors_are_those_of_the_true_files():
    """As of the authors' and of diffusers' modules, buffers included."""
    counts = {"sd3-medium": (491, 683), "sd3.5-medium": (665, 909), "sd3.5-large": (923, 1227)}
    for name, expected in counts.items():
        assert tuple(len(tensor_shapes(layout, variant(name))) for layout in (SD3File(), DiffusersSD3())) == expected


# --- What does not fit -------------------------------------------------------------------------------------------------


def changed(tmp_path, change):
    """The authors' file of an SD3.5 with other tensors, by their names without the prefix."""
    tensors = {name.removeprefix(PREFIX): array for name, array in load_file(GOLDENS / "sd35_medium" / FILE).items()}
    change(tensors)
    save_file({PREFIX + name: array for name, array in tensors.items()}, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


LN_Q, FINAL = "joint_blocks.0.x_block.attn.ln_q.weight", "final_layer.linear"
ZEROS = np.zeros((4, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda t: t.pop("pos_embed"), TOLD, "tensors missing: pos_embed"),
        (
            lambda t: t.pop("joint_blocks.2.context_block.mlp.fc1.bias"),
            TOLD,
            "tensors missing: joint_blocks.2.context_block",
        ),
        (lambda t: t.update(more=ZEROS), TOLD, "tensors unexpected: more"),
        (lambda t: t.update(pos_embed=ZEROS[None, :3]), TOLD, r"pos_embed \(1, 3, 4\): expected \(1, n, d\) with a square"),
        (
            lambda t: t.update({"context_embedder.weight": ZEROS[0]}),
            TOLD,
            r"context_embedder.weight \(4,\): expected \(d, c\)",
        ),
        (lambda t: t.update({LN_Q: ZEROS}), TOLD, r"ln_q.weight \(4, 4\): expected \(k,\)"),
        (lambda t: t.update({LN_Q: ZEROS[0]}), {"input_size": 8}, "tensors mis-shaped: joint_blocks.0.x_block.attn.ln_k"),
        (lambda t: t.update({f"{FINAL}.weight": np.tile(t[f"{FINAL}.weight"], (2, 1))}), TOLD, "twice the input's channels"),
        (lambda t: t.update({"joint_blocks.4.x_block.attn2.qkv.bias": ZEROS}), TOLD, r"dual_attention: got \[0, 1, 2, 4\]"),
        (lambda t: None, {}, "input_size: got None, and no tensor tells it"),
        (lambda t: None, {"input_size": 7}, "input_size 7 is not a multiple of patch_size 2"),
        (lambda t: None, {"input_size": 32}, "image of 16x16 tokens: expected at most the 10x10 that have positions"),
        (lambda t: None, {**TOLD, "num_heads": 4}, "tensors mis-shaped"),
        (lambda t: None, {**TOLD, "text_tokens": 0}, "text_tokens: got 0, expected a positive integer"),
        (lambda t: None, {**TOLD, "compat": "dit"}, "override 'compat': not known"),
        (lambda t: None, {**TOLD, "qk_norm": "layer"}, "override qk_norm='layer': the file has 'rms'"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, told, message, tmp_path):
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(changed(tmp_path, change), **told)
    assert "\n" not in str(refused.value)


def test_heads_are_told_where_no_tensor_tells_them():
    with pytest.raises(BadInput, match="num_heads: not stored in tensors and width 24 is no published SD3's"):
        graftax.load(GOLDENS / "sd3_medium" / FILE, input_size=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm: layer_norm, expected one of"),
        ({"dual_attention_layers": "all"}, "dual_attention_layers: all, expected numbers of blocks"),
        ({"dual_attention_layers": [0]}, "tensors unexpected: transformer_blocks.1.attn2"),
        ({"pos_embed_max_size": 99}, "pos_embed_max_size: 99, but the weights have 10"),
        ({"caption_projection_dim": 20}, "caption_projection_dim: 20, expected the width 24"),
        ({"joint_attention_dim": None}, "joint_attention_dim: None, expected a positive integer"),
        ({"out_channels": 32}, "out_channels: 32, expected 16"),
        ({"num_layers": 3}, "num_layers: 3, but the weights have 5 blocks"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message, tmp_path):
    shutil.copytree(GOLDENS / "sd35_medium" / "diffusers", tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "folder")
    assert "\n" not in str(refused.value)


def test_what_no_layout_holds_is_refused(tmp_path):
    sizes = {"positions": 6, "text_width": 12, "text_tokens": 5, "pooled_width": 10}
    spec = sd3_spec(input_size=8, in_channels=4, hidden_size=24, depth=3, num_heads=2, dual_attention=(0,), **sizes)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    edits = (
        replace("sd3[0].img/mlp", "mlp", ratio=2),
        skip(1, 2),
        lora("sd3[*].mlp", rank=2),
        replace("sd3_dual[0].attn2", "mha"),
    )
    for edit in edits:
        student = graft(model, edit, jax.random.key(1))
        for path, holder in (("other.safetensors", "SD3 files hold"), ("folder", "diffusers' folders hold")):
            with pytest.raises(BadInput, match=f"export: {holder} plain SD3s alone"):
                graftax.export(student, tmp_path / path)
    assert not list(tmp_path.iterdir())
    graftax.save(student, tmp_path / "own")
    again = graftax.load(tmp_path / "own")
    assert again.spec == student.spec
    assert_trees_close(again.params, student.params, rtol=0, atol=0)
