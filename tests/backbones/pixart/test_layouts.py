"""PixArt's files: read and written bit for bit, true sizes recognised, what does not fit named in one line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import graftax
from graftax.backbones.pixart import variant
from graftax.backbones.pixart.layouts import DiffusersPixArt, PixArtFile
from graftax.backbones.pixart.variants import VARIANTS
from graftax.checkpoint.tensors import read_tensors
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensor_shapes
from graftax.spec import op
from graftax.surgery import graft, lora, replace, skip
from graftax.testing import assert_trees_close, random_params, tiny_text_spec

GOLDENS = Path(__file__).parents[2] / "goldens" / "pixart"
TOLD = {"num_heads": 4, "interpolation": 2}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def tensors_of(path):
    return dict(read_tensors(path)[0])


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["sigma", "sigma_kv_compress"])
def test_the_authors_file_there_and_back(name, tmp_path):
    model = graftax.load(GOLDENS / name / "original.pth", **TOLD)
    graftax.export(model, tmp_path / "back.pth")
    assert set(torch.load(tmp_path / "back.pth", weights_only=True)) == {"state_dict"}  # where their code looks
    expected = tensors_of(GOLDENS / name / "original.pth")
    del expected["pos_embed"]  # theirs computes it, and drops what a file has
    assert_same_tensors(tensors_of(tmp_path / "back.pth"), expected)
    assert graftax.load(tmp_path / "back.pth").spec == model.spec  # it carries its spec


@pytest.mark.parametrize("name", ["sigma", "alpha_1024"])
def test_a_folder_of_diffusers_there_and_back(name, tmp_path):
    model = graftax.load(GOLDENS / name / "diffusers")
    graftax.export(model, tmp_path / "back")
    assert_same_tensors(tensors_of(tmp_path / "back" / WEIGHTS), tensors_of(GOLDENS / name / "diffusers" / WEIGHTS))
    folders = (GOLDENS / name / "diffusers", tmp_path / "back")
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert {key: theirs[key] for key in ours} == ours
    assert graftax.load(tmp_path / "back").spec == model.spec


def test_from_the_authors_to_diffusers_the_null_caption_is_left_out(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = graftax.load(GOLDENS / "sigma" / "original.pth", **TOLD)
    graftax.export(model, tmp_path / "folder")
    theirs = diffusers.PixArtTransformer2DModel.from_pretrained(tmp_path / "folder")
    assert len(theirs.transformer_blocks) == model.spec.depth
    again = graftax.load(tmp_path / "folder", text_tokens=7)
    assert again.spec == model.spec.with_frame(null_tokens=0)
    expected = {name: leaf for name, leaf in model.params.items() if name != "null_caption"}
    assert_trees_close(again.params, expected, rtol=0, atol=0)


def test_a_pipeline_and_the_class_of_older_releases(tmp_path):
    shutil.copytree(GOLDENS / "sigma" / "diffusers", tmp_path / "pipeline" / "transformer")
    config = tmp_path / "pipeline" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "Transformer2DModel"}))
    assert graftax.load(tmp_path / "pipeline").spec == graftax.load(GOLDENS / "sigma" / "diffusers").spec


def test_grafted_operators_have_names_in_the_authors_file(tmp_path):
    spec = tiny_text_spec()
    model = Model(spec, random_params(spec, jax.random.key(0)))
    student = graft(model, replace("blocks[1::2].mixer", "hyena_x", kernel=4), jax.random.key(1))
    student = graft(student, replace("blocks[0].norm1", "rms_norm", affine=True), jax.random.key(2))
    graftax.export(student, tmp_path / "student.pth")
    names = tensors_of(tmp_path / "student.pth")
    assert "blocks.1.attn.in_proj.weight" in names
    bare = {name: torch.from_numpy(np.array(array)) for name, array in names.items()}
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")  # without the spec that an export carries
    again = graftax.load(tmp_path / "bare.pth", num_heads=4, interpolation=1, input_size=8)
    assert again.spec == student.spec
    with pytest.raises(BadInput, match="expected a plain PixArt"):
        graftax.export(student, tmp_path / "folder")
    for edit, message in ((skip(1, 2), "no program"), (lora("blocks[*].cross", rank=2), "no adapters")):
        with pytest.raises(BadInput, match=message):
            graftax.export(graft(model, edit, jax.random.key(0)), tmp_path / "other.pth")
    full = graft(model, replace("blocks[2].adaln", "adaln"), jax.random.key(0))
    with pytest.raises(BadInput, match=r"blocks\[2\].adaln is adaln, but PixArt files hold adaln_shared alone"):
        graftax.export(full, tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()


@pytest.mark.parametrize("name", VARIANTS)
def test_true_sizes_are_recognised_without_overrides(name):
    spec = variant(name)
    layout, grid = PixArtFile(), spec.sizes.image
    assert layout.spec({**tensor_shapes(layout, spec), "pos_embed": (1, grid, 1152)}, {}, {}) == spec
    folder = DiffusersPixArt()
    again = folder.spec(tensor_shapes(folder, spec), folder.config(spec), {"text_tokens": spec.sizes.context})
    assert again == spec.with_frame(null_tokens=0)


def test_numbers_of_tensors_are_those_of_the_true_files():
    """Table 1 of the facts: 437 tensors in the authors' file with its table of positions, 603 and 611 in diffusers'."""
    sigma, alpha = variant("pixart-sigma-1024"), variant("pixart-alpha-1024")
    assert len(tensor_shapes(PixArtFile(), sigma)) + 1 == 437
    assert len(tensor_shapes(DiffusersPixArt(), sigma)) == 603
    assert len(tensor_shapes(DiffusersPixArt(), alpha)) == 611


# --- What does not fit -------------------------------------------------------------------------------------------------


def changed(tmp_path, change):
    """The authors' file with other tensors."""
    found = tensors_of(GOLDENS / "sigma" / "original.pth")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
    change(tensors)
    torch.save({"state_dict": tensors}, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda t: t.pop("t_block.1.bias"), TOLD, "tensors missing: t_block.1.bias"),
        (lambda t: t.pop("blocks.2.scale_shift_table"), TOLD, "tensors missing: blocks.2.scale_shift_table"),
        (lambda t: t.pop("blocks.2.cross_attn.kv_linear.bias"), TOLD, "cross_mha: missing blocks.2.cross_attn.kv_"),
        (lambda t: t.update(more=t["pos_embed"]), TOLD, "tensors unexpected: more"),
        (lambda t: t.update({"final_layer.scale_shift_table": t["pos_embed"]}), TOLD, "shaped: final_layer.scale_shift"),
        (lambda t: t.update({"y_embedder.y_embedding": t["pos_embed"]}), TOLD, r"y_embedding \(1, 16, 32\): expected"),
        (lambda t: t.pop("pos_embed"), TOLD, "input_size: got None, and the file has no pos_embed"),
        (lambda t: t.pop("pos_embed"), {**TOLD, "input_size": 7}, "input_size: got 7"),
        (lambda t: None, {"num_heads": 4}, "interpolation: not stored in tensors and width 32 is no published PixArt's"),
        (lambda t: None, {"interpolation": 2}, "num_heads: not stored in tensors"),
        (lambda t: None, {**TOLD, "interpolation": -1}, "interpolation: got -1, expected a positive number"),
        (lambda t: None, {**TOLD, "compat": "dit"}, "override 'compat': not known"),
        (lambda t: None, {**TOLD, "input_size": 16}, "override input_size=16: the file says 8"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, told, message, tmp_path):
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(changed(tmp_path, change), **told)
    assert "\n" not in str(refused.value)


def test_what_either_code_computes_may_be_missing(tmp_path):
    path = changed(tmp_path, lambda t: [t.pop(name) for name in ("pos_embed", "y_embedder.y_embedding")])
    model = graftax.load(path, **TOLD, input_size=8, text_tokens=7)
    whole = graftax.load(GOLDENS / "sigma" / "original.pth", **TOLD)
    assert model.spec == whole.spec.with_frame(null_tokens=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_additional_conditions": True}, "use_additional_conditions: True, but the weights say False"),
        ({"caption_channels": None}, "caption_channels: None, expected a positive integer"),
        ({"cross_attention_dim": 16}, "cross_attention_dim: 16, expected the width 32"),
        ({"interpolation_scale": 0}, "interpolation_scale: 0, expected a positive number"),
        ({"norm_type": "ada_norm_zero"}, "norm_type: ada_norm_zero, expected ada_norm_single"),
        ({"num_layers": 3}, "num_layers: 3, but the weights have 4 blocks"),
        ({"_class_name": "DiTTransformer2DModel"}, "norm_type: ada_norm_single, expected ada_norm_zero"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message, tmp_path):
    shutil.copytree(GOLDENS / "sigma" / "diffusers", tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "folder")
    assert "\n" not in str(refused.value)


def test_the_rule_of_diffusers_where_a_config_says_nothing_of_positions(tmp_path):
    shutil.copytree(GOLDENS / "sigma" / "diffusers", tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    told = {**json.loads(config.read_text()), "sample_size": 128, "interpolation_scale": None}
    config.write_text(json.dumps({key: value for key, value in told.items() if key != "use_additional_conditions"}))
    spec = graftax.load(tmp_path / "folder").spec
    assert (spec.option("interpolation"), spec.option("base"), spec.option("micro")) == (2.0, 64, False)
    save_file({**load_file(tmp_path / "folder" / WEIGHTS), "more": torch.zeros(1)}, tmp_path / "folder" / WEIGHTS)
    with pytest.raises(BadInput, match="tensors unexpected: more"):
        graftax.load(tmp_path / "folder")


def test_norms_and_compressed_keys_are_recognised():
    assert op("mha_kv", factor=2, qk_norm=True) in {
        block["mixer"] for block in graftax.load(GOLDENS / "sigma_kv_compress" / "original.pth", **TOLD).spec.blocks
    }
