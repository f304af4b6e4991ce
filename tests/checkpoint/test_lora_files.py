"""LoRA files of every family and layout: the kernels they change, what is written, what does not fit."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.api import read
from graftax.errors import BadInput
from graftax.models.backbone import module_of
from graftax.models.layout import params_from, tensors_from
from graftax.models.lora import LORA
from graftax.models.lora_layers import layers_of
from graftax.surgery import graft, lora, lora_file, merge_lora, replace
from graftax.testing import assert_trees_close, random_params

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = {
    "dit": ("dit.pt", {"num_heads": 4}), "pixart": ("pixart/sigma/diffusers", {}),
    "sd3": ("sd3/sd35_medium/diffusers", {}), "flux": ("flux/schnell/diffusers", {}),
    "auraflow": ("auraflow/diffusers", {}),
}  # fmt: skip
LAYOUTS = [
    (name, layout.name)
    for name in MODELS
    for layout in module_of(name).LAYOUTS
    if name != "dit" or layout.name in ("dit", "diffusers-dit")  # others are of relatives, which predict a velocity
]
FLUX = GOLDENS / "lora" / "flux_kohya.safetensors"
RNG = jax.random.key(0)


def model_of(name, layout=""):
    path, told = MODELS[name]
    return read(GOLDENS / path, **told, **({"compat": "diffusers"} if layout == "diffusers-dit" else {}))


def layout_of(model, name):
    return next(one for one in module_of(model.spec.backbone).LAYOUTS if one.name == name)


def random_lora(shapes, rank=2):
    """Layer -> down, up: the same of layers of one shape."""
    rng = np.random.default_rng(0)
    sides = {shape: (rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))) for shape in
             sorted(set(shapes.values()))}  # fmt: skip
    return {layer: [np.float32(side) for side in sides[shape]] for layer, shape in shapes.items()}


def write(path, changes, start="transformer.", plain=False):
    names = {layer: start + (layer.replace(".", "_") if plain else layer) for layer in changes}
    tensors = {f"{names[layer]}.lora_A.weight": down for layer, (down, _) in changes.items()}
    save_file(tensors | {f"{names[layer]}.lora_B.weight": up for layer, (_, up) in changes.items()}, path)
    return path


def linear_layers(model, layout):
    return layers_of(layout, model.spec).shapes


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_layers_are_changed_as_in_the_file_itself(name, layout, tmp_path):
    """W + up down in the tensors, then opened: what the LoRA must make of the opened model."""
    model = model_of(name, layout)
    layout = layout_of(model, layout)
    tensors = layout.own(tensors_from(layout, model.spec, model.params))
    layers = random_lora(linear_layers(model, layout))
    assert len(layers) > 20
    changed = {f"{layer}.weight": tensors[f"{layer}.weight"] + up @ down for layer, (down, up) in layers.items()}
    expected = params_from(layout, model.spec, {**tensors, **changed})
    for start, plain in (("transformer.", False), ("lora_unet_", True)):
        path = write(tmp_path / "lora.safetensors", layers, start, plain)
        found = graft(model, lora_file(path, merge=True))
        kept = {path: leaf for path, leaf in expected.items() if path in found.params}
        assert_trees_close(found.params, {**found.params, **kept}, rtol=1e-5, atol=1e-5)
        assert found.spec == model.spec


def test_a_third_of_a_kernel_changes_alone(tmp_path):
    model = model_of("pixart")
    layout = layout_of(model, "diffusers-pixart")
    name = "transformer_blocks.1.attn1.to_k"
    (down, up) = random_lora(linear_layers(model, layout))[name]
    student = graft(model, lora_file(write(tmp_path / "k.safetensors", {name: (down, up)})))
    assert [(one.path, one.rank) for one in student.spec.adapters] == [("blocks/01/mixer/qkv/kernel", 2)]
    before, after = (one.params["blocks"]["01"]["mixer"]["qkv"]["kernel"] for one in (model, graft(student, merge_lora())))
    width = model.spec.width
    np.testing.assert_array_equal(after[:, :width], before[:, :width])
    np.testing.assert_allclose(after[:, width : 2 * width] - before[:, width : 2 * width], (up @ down).T, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(after[:, 2 * width :], before[:, 2 * width :])


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_written_and_read_back(name, layout, tmp_path):
    """Adapters of no structure on every kernel of the blocks and the head."""
    model = graft(model_of(name), lora("blocks/.*", "final", rank=3, alpha=4.5), RNG)
    model = model.replace(params={**model.params, LORA: random_params(model.spec, RNG)[LORA]})
    graftax.export_lora(model, tmp_path / "lora.safetensors", layout=layout)
    back = graft(model_of(name), lora_file(tmp_path / "lora.safetensors"))
    assert [one.path for one in back.spec.adapters] == [one.path for one in model.spec.adapters]
    merged, expected = (graft(one, merge_lora()).params for one in (back, model))
    assert_trees_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["flux_kohya", "flux_diffusers_noalpha", "sd3_diffusers_noalpha"])
def test_files_come_back_with_their_names_and_ranks(name, tmp_path):
    source = GOLDENS / "lora" / f"{name}.safetensors"
    base = "flux/schnell" if name.startswith("flux") else "sd3/sd3_medium"
    model = graft(read(GOLDENS / base / "diffusers"), lora_file(source))
    graftax.export_lora(model, tmp_path / "back.safetensors", layout="flux" if "kohya" in name else None)
    back, expected = load_file(tmp_path / "back.safetensors"), load_file(source)
    assert back.keys() == expected.keys()
    for key in expected:
        if key.endswith(("lora_up.weight", "lora_B.weight")):
            layer = key.rsplit(".", 2)[0]
            down = ".lora_down.weight" if "kohya" in name else ".lora_A.weight"
            product, theirs = (one[key] @ one[layer + down] for one in (back, expected))
            factor = 0.5 if "kohya" in name else 1.0  # alpha 3 of rank 6; written are alpha = rank
            np.testing.assert_allclose(product, factor * theirs, rtol=1e-5, atol=1e-6)
        assert back[key].shape == expected[key].shape


def test_layouts_into_each_other_keep_the_ranks(tmp_path):
    """Kohya's layers of one `down` for q, k, v (and the MLP) as diffusers' several, and back."""
    model = read(GOLDENS / "flux/schnell/diffusers")
    first = graft(model, lora_file(GOLDENS / "lora" / "flux_diffusers_noalpha.safetensors"))
    for layout in ("flux", "diffusers-flux"):
        graftax.export_lora(first, tmp_path / "lora.safetensors", layout=layout)
        assert graft(model, lora_file(tmp_path / "lora.safetensors")).spec == first.spec


def test_fresh_adapters_are_written_too(tmp_path):
    model = graft(model_of("flux"), lora("single[1,3].mlp", rank=4), RNG)
    for layout, count in (("diffusers-flux", 4), ("flux", 6)):  # there a layer holds fc1 and qkv
        graftax.export_lora(model, tmp_path / "fresh.safetensors", layout=layout)
        assert len(graft(model_of("flux"), lora_file(tmp_path / "fresh.safetensors")).spec.adapters) == count


def test_half_precision_becomes_float32(tmp_path):
    tensors = load_file(FLUX)
    save_file({name: one.astype(ml_dtypes.bfloat16) for name, one in tensors.items()}, tmp_path / "half.safetensors")
    adapters = graft(model_of("flux"), lora_file(tmp_path / "half.safetensors")).params[LORA]
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {np.dtype("float32")}


def test_alpha_from_the_configuration_in_the_metadata(tmp_path):
    layer = "transformer_blocks.0.attn.to_q"
    down, up = np.ones((4, 32), np.float32), np.ones((32, 4), np.float32)
    tensors = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}

    def change(**config):
        said = json.dumps({f"transformer.{name}": value for name, value in config.items()})
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": said})
        merged = graft(model_of("flux"), lora_file(tmp_path / "x.safetensors"))
        return merged.params[LORA]["blocks"]["00"]["attn"]["img"]["qkv"]["kernel"]["b"][0, 0]

    assert change() == 1
    assert change(lora_alpha=2) == 0.5
    assert change(lora_alpha=2, alpha_pattern={"attn.to_q": 8}) == 2
    assert change(lora_alpha=2, alpha_pattern={"attn2.to_q": 8}) == 0.5
    assert change(lora_alpha=2, use_rslora=True) == 1
    with pytest.raises(BadInput, match="lora_adapter_metadata: lora_alpha 'two'"):
        change(lora_alpha="two")


TO_Q = "transformer.transformer_blocks.0.attn.to_q"
SIDE = np.ones((4, 32), np.float32)
SIDES = {f"{TO_Q}.lora_A.weight": SIDE, f"{TO_Q}.lora_B.weight": SIDE.T.copy()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": SIDE},
         "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight': a text encoder's, expected"),
        ({"text_encoder.text_model.x.lora_A.weight": SIDE}, "text_encoder.text_model.x.lora_A.weight': a text encoder's"),
        ({**SIDES, f"{TO_Q}.lora_magnitude_vector": SIDE[0]}, "to_q.lora_magnitude_vector': no part of a LoRA"),
        ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": SIDE},
         "lora_unet_input_blocks_4_1_proj_in.lora_down.weight': no linear layer of this flux of 10 blocks"),
        ({**SIDES, "transformer.transformer_blocks.5.attn.to_q.lora_A.weight": SIDE},
         r"transformer.transformer_blocks.5.attn.to_q.lora_A.weight': no linear layer .* did you mean"),
        ({f"{TO_Q}.lora_A.weight": SIDE},
         "to_q.lora_A.weight': stands alone, expected .*to_q' with lora_B.weight or lora_up.weight"),
        ({**SIDES, f"{TO_Q}.lora_A.weight": SIDE[:, :24]}, r"lora_A.weight': shape \(4, 24\), expected \(rank, 32\)"),
        ({**SIDES, f"{TO_Q}.lora_B.weight": SIDE.T[:, :3]}, r"lora_B.weight': shape \(32, 3\), expected \(32, 4\)"),
        ({**SIDES, f"{TO_Q}.lora_A.weight": SIDE[0]}, r"lora_A.weight': shape \(32,\), expected \(rank, 32\)"),
        ({**SIDES, f"{TO_Q}.alpha": SIDE[0]}, r"to_q.alpha': shape \(32,\), expected one number"),
        ({**SIDES, f"{TO_Q}.lora_B.weight": SIDE.T * np.nan}, "lora_B.weight': NaN or infinite"),
        ({**SIDES, f"{TO_Q}.alpha": np.array(np.inf, np.float32)}, "lora_B.weight': NaN or infinite"),
        ({**SIDES, f"{TO_Q}.lora_down.weight": SIDE}, "to_q.lora_(A|down).weight' is there too"),
        ({**SIDES, **{name.replace("transformer.t", "diffusion_model.t"): one for name, one in SIDES.items()}},
         "lora_A.weight': the same layer as '"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_in_one_line(tensors, message, tmp_path):
    save_file({name: np.ascontiguousarray(one) for name, one in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=message) as error:
        graft(model_of("flux"), lora_file(tmp_path / "x.safetensors"))
    assert str(error.value).startswith(f"{tmp_path / 'x.safetensors'}: ")
    assert "\n" not in str(error.value)


def test_another_models_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"transformer.transformer_blocks.5.attn.* no linear layer of this flux of 10 blocks"):
        graft(model_of("flux"), lora_file(GOLDENS / "lora" / "sd3_diffusers_noalpha.safetensors"))
    with pytest.raises(BadInput, match=r"lora_unet_double_blocks_.*': no linear layer of this sd3 of 6 blocks"):
        graft(read(GOLDENS / "sd3/sd3_medium/diffusers"), lora_file(FLUX))
    with pytest.raises(BadInput, match="no such file"):
        graft(model_of("flux"), lora_file(tmp_path / "none.safetensors"))


def test_copies_of_a_layer_are_changed_alike(tmp_path):
    model = model_of("dit")
    layers = random_lora(linear_layers(model, layout_of(model, "diffusers-dit")))
    one = {name: sides for name, sides in layers.items() if name.endswith("0.norm1.emb.timestep_embedder.linear_1")}
    with pytest.raises(BadInput, match=r"timestep_embedder.linear_1: one of 4 copies of a layer, expected the same change"):
        graft(model, lora_file(write(tmp_path / "x.safetensors", one)))


@pytest.mark.parametrize("name", ["dit", "pixart", "flux"])
def test_grafts_keep_the_layers_that_they_left(name, tmp_path):
    """A LoRA for the original works on a student's other layers, in every layout; the exchanged ones are refused."""
    model = model_of(name)
    student = graft(model, replace("single[0].mixer" if name == "flux" else "blocks[0].mixer", "hyena_x", kernel=4), RNG)
    for layout in module_of(name).LAYOUTS:
        all_layers, left = (layers_of(layout, one.spec) for one in (model, student))
        gone = all_layers.keys.keys() - left.keys.keys()
        assert gone
        sides = random_lora(linear_layers(model, layout))
        for layer in sorted(gone):
            with pytest.raises(BadInput, match="no linear layer of this"):
                graft(student, lora_file(write(tmp_path / "x.safetensors", {layer: sides[layer]})))
        kept = {layer: sides[layer] for layer in sorted(left.keys.keys() & sides.keys())}
        assert graft(student, lora_file(write(tmp_path / "x.safetensors", kept))).spec.adapters


def test_what_cannot_be_written_is_refused(tmp_path):
    model = graft(model_of("flux"), lora("final", rank=2), RNG)
    with pytest.raises(BadInput, match=r"layout 'kohya', expected one of \('flux', 'diffusers-flux'\)"):
        graftax.export_lora(model, tmp_path / "x.safetensors", layout="kohya")
    with pytest.raises(BadInput, match=r"suffix '.pt', expected .safetensors"):
        graftax.export_lora(model, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="a flux with no adapters"):
        graftax.export_lora(model_of("flux"), tmp_path / "x.safetensors")
    student = graft(model_of("flux"), replace("single[0].mixer", "hyena_x", kernel=4), RNG)
    student = graft(student, lora("single[0].mixer", rank=2), RNG)
    with pytest.raises(BadInput, match="adapter on blocks/05/mixer/in_proj/kernel: no layer of that format"):
        graftax.export_lora(student, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
