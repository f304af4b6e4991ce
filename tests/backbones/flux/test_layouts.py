"""Flux's files: read and written bit for bit, from either format to the other, what does not fit named in one line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.backbones.flux import flux_spec, variant
from graftax.backbones.flux.layouts import DiffusersFlux, FluxFile
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensor_shapes
from graftax.surgery import drop, graft, lora, replace, resize, skip
from graftax.testing import assert_trees_close, random_params

GOLDENS = Path(__file__).parents[2] / "goldens" / "flux"
TOLD = {"rope_axes": (4, 6, 6)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_same_tensors(found, expected):
    found, expected = load_file(found), load_file(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["dev", "schnell"])
@pytest.mark.parametrize("source", ["original.safetensors", "diffusers"])
def test_there_and_back_in_both_formats(name, source, tmp_path):
    model = graftax.load(GOLDENS / name / source, **({} if source == "diffusers" else TOLD))
    graftax.export(model, tmp_path / "back.safetensors")
    graftax.export(model, tmp_path / "back")
    assert_same_tensors(tmp_path / "back.safetensors", GOLDENS / name / "original.safetensors")
    assert_same_tensors(tmp_path / "back" / WEIGHTS, GOLDENS / name / "diffusers" / WEIGHTS)
    theirs, ours = (
        json.loads((one / "config.json").read_text()) for one in (GOLDENS / name / "diffusers", tmp_path / "back")
    )
    assert {**ours, "out_channels": None} == {key: value for key, value in theirs.items() if key != "_diffusers_version"}
    assert graftax.load(tmp_path / "back").spec == model.spec
    assert graftax.load(tmp_path / "back.safetensors").spec == model.spec  # it carries its spec


def test_both_formats_hold_one_model():
    original = graftax.load(GOLDENS / "dev" / "original.safetensors", layout="flux", **TOLD)
    diffusers = graftax.load(GOLDENS / "dev" / "diffusers", layout="diffusers-flux")
    assert original.spec == diffusers.spec
    assert_trees_close(original.params, diffusers.params, rtol=0, atol=0)
    assert diffusers.spec.sizes.text == 512
    assert diffusers.spec.image_shape == (128, 128, 16)


@pytest.mark.slow
def test_diffusers_opens_what_is_written(tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    model, golden = graftax.load(GOLDENS / "dev" / "original.safetensors", **TOLD), np.load(GOLDENS / "dev" / "io.npz")
    graftax.export(model, tmp_path / "folder")
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "folder")
    tensors = {name: torch.from_numpy(golden[name]) for name in golden.files}
    with torch.no_grad():
        out = theirs(
            hidden_states=tensors["x"], encoder_hidden_states=tensors["text"], pooled_projections=tensors["pooled"],
            timestep=tensors["t"], img_ids=tensors["img_ids"], txt_ids=tensors["txt_ids"], guidance=tensors["guidance"],
        ).sample  # fmt: skip
    np.testing.assert_allclose(out, golden["out"], rtol=0, atol=2e-5)


def test_a_pipeline_in_shards_and_a_config_of_older_releases(tmp_path):
    folder = tmp_path / "pipeline" / "transformer"
    shutil.copytree(GOLDENS / "dev" / "diffusers", folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {f"part-{k}.safetensors": sorted(tensors)[k::2] for k in range(2)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    placed = {name: file for file, names in shards.items() for name in names}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": placed}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("axes_dims_rope", "out_channels")})
    )
    with pytest.raises(BadInput, match="rope_axes: not stored in tensors and heads of 16 are no published Flux's"):
        graftax.load(tmp_path / "pipeline")
    found, whole = graftax.load(tmp_path / "pipeline", **TOLD), graftax.load(GOLDENS / "dev" / "diffusers")
    assert found.spec == whole.spec
    assert_trees_close(found.params, whole.params, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "original", "diffusers"), [("flux-schnell", 776, 1156), ("flux-dev", 780, 1160)])
def test_true_sizes_are_recognised_without_overrides(name, original, diffusers):
    spec, layouts = variant(name), (FluxFile(), DiffusersFlux())
    shapes = [tensor_shapes(layout, spec) for layout in layouts]
    assert [len(one) for one in shapes] == [original, diffusers]
    assert layouts[0].spec(shapes[0], {}, {}) == spec
    config = layouts[1].config(spec)
    assert config["axes_dims_rope"] == [16, 56, 56]
    assert layouts[1].spec(shapes[1], config, {}) == spec
    assert layouts[1].spec(shapes[1], {"_class_name": config["_class_name"]}, {}) == spec
    assert shapes[0]["single_blocks.37.linear1.weight"] == (21504, 3072)
    assert shapes[0]["single_blocks.37.linear2.weight"] == shapes[1]["single_transformer_blocks.37.proj_out.weight"]
    assert shapes[1]["single_transformer_blocks.37.proj_out.weight"] == (3072, 15360)


SPEC = flux_spec(input_size=8, hidden_size=16, num_heads=2, double=2, single=3, text_width=6, text_tokens=3, pooled_width=4)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))


def test_fewer_blocks_and_other_mlps_have_a_place(tmp_path):
    student = graft(MODEL, drop(0, 3))
    graftax.export(student, tmp_path / "fewer")
    fewer = student.spec
    assert graftax.load(tmp_path / "fewer", input_size=8, text_tokens=3).spec == fewer
    resized = graft(student, resize("single[0].mlp", 3, init="random"), jax.random.key(1))
    resized = graft(resized, resize("double[0].txt/mlp", 2, init="random"), jax.random.key(1))
    graftax.export(resized, tmp_path / "resized.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "resized.safetensors"), bare)  # without the spec that an export carries
    again = graftax.load(bare, rope_axes="4,2,2", input_size=8, text_tokens=3)
    assert again.spec == resized.spec
    assert_trees_close(again.params, resized.params, rtol=0, atol=0)
    with pytest.raises(BadInput, match=r"export to diffusers: got mlp\(ratio=2.0\), expected mlp\(ratio=4.0\) everywhere"):
        graftax.export(resized, tmp_path / "folder")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace("single[1].mixer", "hyena_x"), r"blocks\[3\].mixer is hyena_x.*, but Flux files hold mha_normed"),
        (replace("double[0].img/norm2", "rms_norm"), r"blocks\[0\].img/norm2 is rms_norm"),
        (skip(1, 2), "expected double, then single blocks, run in order"),
        (lora("single[*].mixer", rank=2), "without adapters; merge_lora"),
    ],
)
@pytest.mark.parametrize("path", ["model.safetensors", "folder"])
def test_models_that_no_file_holds_are_refused(edit, message, path, tmp_path):
    with pytest.raises(BadInput, match=message):
        graftax.export(graft(MODEL, edit, jax.random.key(0)), tmp_path / path)
    assert not (tmp_path / path).exists()


# --- What does not fit -------------------------------------------------------------------------------------------------


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda t: t.pop("final_layer.linear.bias"), TOLD, "tensors missing: final_layer.linear.bias"),
        (lambda t: t.pop("guidance_in.out_layer.bias"), TOLD, "tensors missing: guidance_in.out_layer.bias"),
        (lambda t: t.pop("single_blocks.1.linear1.bias"), TOLD, "tensors missing: single_blocks.1.linear1.bias"),
        (lambda t: t.pop("double_blocks.0.txt_attn.qkv.weight"), TOLD, "tensors missing: double_blocks.0.txt_attn.qkv"),
        (lambda t: t.update(more=zeros(1)), TOLD, "tensors unexpected: more"),
        (lambda t: t.update({"single_blocks.0.linear2.weight": zeros(32, 9)}), TOLD, r"\(32, 9\) \(expected \(32, 160"),
        (lambda t: t.update({"img_in.weight": zeros(32, 96)}), TOLD, r"img_in.weight \(32, 96\).*Fill, Canny, Depth"),
        (lambda t: t.update({"double_blocks.0.img_attn.norm.query_norm.scale": zeros(5)}), TOLD, r"\(5,\): expected \(k,\)"),
        (lambda t: None, {}, "rope_axes: not stored in tensors and heads of 16 are no published Flux's"),
        (lambda t: None, {"rope_axes": (4, 6, 8)}, r"rope_axes: got \(4, 6, 8\), expected three even numbers that add"),
        (lambda t: None, {"rope_axes": (5, 5, 6)}, r"rope_axes: got \(5, 5, 6\)"),
        (lambda t: None, {"rope_axes": (8, 8)}, r"rope_axes: got \(8, 8\)"),
        (lambda t: None, {"rope_axes": 16}, "rope_axes: got 16"),
        (lambda t: None, {**TOLD, "text_tokens": 0}, "text_tokens: got 0, expected a positive integer"),
        (lambda t: None, {**TOLD, "input_size": 7}, "input_size: got 7, expected a multiple of 2"),
        (lambda t: None, {**TOLD, "num_heads": 3}, "override num_heads=3: the file says 2"),
        (lambda t: None, {**TOLD, "compat": "dit"}, "override 'compat': not known"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(change, told, message, tmp_path):
    tensors = load_file(GOLDENS / "dev" / "original.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "changed.safetensors", **told)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        ({"num_layers": 3}, {}, "config.json num_layers: 3, expected 1"),
        ({"guidance_embeds": False}, {}, "config.json guidance_embeds: False, expected True"),
        ({"axes_dims_rope": [4, 4, 4]}, {}, "rope_axes: got '4, 4, 4', expected three even numbers that add up to 16"),
        ({}, {"rope_axes": (8, 4, 4)}, r"config.json axes_dims_rope: \[4, 6, 6\], expected \[8, 4, 4\]"),
        ({"patch_size": 2}, {}, "config.json patch_size: 2, expected 1"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, told, message, tmp_path):
    shutil.copytree(GOLDENS / "dev" / "diffusers", tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(BadInput, match=message) as refused:
        graftax.load(tmp_path / "folder", **told)
    assert "\n" not in str(refused.value)
