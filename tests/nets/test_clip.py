"""CLIP's text models: the numbers of transformers itself, on random weights; true sizes; files that are none."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.errors import BadInput
from graftax.nets import clip
from graftax.nets.clip_files import params_from_tensors, read_params, spec_from_config
from graftax.nets.text_encoder import read_text_encoder

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = ["clip_l", "clip_l_proj", "clip_l_tf5", "clip_g_proj"]
WEIGHTS = "model.safetensors"


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def golden(name):
    folder = GOLDENS / name
    spec = spec_from_config(json.loads((folder / "config.json").read_text()))
    return spec, read_params(folder, spec)[0], np.load(folder / "io.npz")


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    """Both activations, both ways to find the end, with and without a projection and the prefix; 5e-7 off here."""
    expected = np.load(GOLDENS / name / "io.npz")
    encoder = graftax.text_encoder(GOLDENS / name)
    found = encoder.ids(expected["input_ids"], hidden=True)
    assert found.keys() == {"last", "pooled", "hidden"} | ({"projected"} if "proj" in name else set())
    assert len(found["hidden"]) == encoder.spec.num_hidden_layers + 1
    for i, state in enumerate(found["hidden"]):
        assert error(state, expected[f"hidden.{i}"]) < 2e-5
    assert error(found["hidden"][-2], expected["penultimate"]) < 2e-5
    assert error(found["last"], expected["last_hidden_state"]) < 2e-5
    assert error(found["pooled"], expected["pooler_output"]) < 2e-5
    if "proj" in name:
        assert error(found["projected"], expected["text_embeds"]) < 2e-5
    assert encoder.ids(expected["input_ids"]).keys() == found.keys() - {"hidden"}


def test_no_token_sees_later_ones():
    spec, params, io = golden("clip_l")
    ids, other = io["input_ids"], io["input_ids"].copy()
    other[:, 6:] = 33
    found, again = (clip.encode(spec, params, given)["last"] for given in (ids, other))
    np.testing.assert_allclose(found[:, :6], again[:, :6], atol=1e-5)
    assert error(again[:, 6:], found[:, 6:]) > 0.1


def test_the_end_of_a_text():
    """The first of several; where the config does not know it, the largest id."""
    spec, params, _ = golden("clip_l_tf5")
    ids = np.array([[97, 5, 98, 6, 98, 98], [97, 98, 1, 2, 3, 98], [97, 1, 2, 3, 4, 5]])
    found = clip.encode(spec, params, ids)
    np.testing.assert_array_equal(found["pooled"], found["last"][np.arange(3), [2, 1, 0]])
    spec, params, _ = golden("clip_l")
    found = clip.encode(spec, params, ids)
    np.testing.assert_array_equal(found["pooled"], found["last"][np.arange(3), [2, 1, 0]])


def test_a_mask_as_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    io = np.load(GOLDENS / "clip_g_proj" / "io.npz")
    mask = (np.arange(11) < np.array([[11], [6], [3]])).astype(int)
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(GOLDENS / "clip_g_proj")
    with torch.no_grad():
        expected = theirs(torch.tensor(io["input_ids"]), torch.tensor(mask))
    found = graftax.text_encoder(GOLDENS / "clip_g_proj").ids(io["input_ids"], mask)
    assert error(found["last"], expected.last_hidden_state.numpy()) < 2e-5
    assert error(found["projected"], expected.text_embeds.numpy()) < 2e-5
    assert error(found["last"], io["last_hidden_state"]) > 0.01  # padding itself sees less


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.03), ("float16", 1e-6)])
def test_other_types_keep_the_stream_in_float32(dtype, most):
    """float16 is computed in float32; bfloat16 rounds what products take."""
    spec, params, io = golden("clip_g_proj")
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    found, exact = (clip.encode(spec, tree, io["input_ids"], hidden=True) for tree in (stored, widened))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert (1e-4 if dtype == "bfloat16" else 0) <= error(found["projected"], exact["projected"]) <= most


@pytest.mark.parametrize(("name", "count"), [("L", 123_060_480), ("G", 694_659_840)])
def test_true_sizes(name, count):
    tree = jax.eval_shape(lambda: clip.init(clip.VARIANTS[name], jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == count


def test_compiling_does_not_grow_with_blocks():
    before = clip._block._cache_size()
    for layers in (2, 5):
        spec = clip.CLIPSpec(20, 8, 16, layers, 2)
        clip.encode(spec, clip.init(spec, jax.random.key(0)), np.arange(6)[None])
    assert clip._block._cache_size() - before == 2, "one program for each spec, whatever the number of blocks"


# --- Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDENS / "clip_l_proj", tmp_path / "clip", copy_function=shutil.copyfile))


def refused(folder, word):
    with pytest.raises(BadInput, match=word) as refusal:
        read_text_encoder(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_names_with_and_without_the_prefix():
    spec, expected, _ = golden("clip_l_proj")
    tensors = load_file(GOLDENS / "clip_l_proj" / WEIGHTS)
    assert "text_model.embeddings.position_ids" in tensors
    found = params_from_tensors(spec, {name.removeprefix("text_model."): a for name, a in tensors.items()})
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    assert "projection" not in golden("clip_l")[1]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "clip_vision_model"}, "a 'clip_vision_model', expected a text encoder"),
        ({"hidden_size": None}, "hidden_size: got None"),
        ({"hidden_size": 25}, "hidden_size: 25, expected a multiple of 3 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, expected at most"),
        ({"num_hidden_layers": 4}, "missing for blocks_3"),
        ({"num_hidden_layers": 2}, r"encoder.layers.2.*unexpected"),
        ({"intermediate_size": 90}, r"fc1.*shape"),
        ({"projection_dim": 8}, r"text_projection.*shape"),
        ({"projection_dim": None}, r"text_projection.*unexpected"),
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', expected quick_gelu or gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act: got list"),
        ({"layer_norm_eps": 1}, "layer_norm_eps: got 1"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id: got -1"),
    ],
)
def test_other_configs(folder, changes, word):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, word)


def test_a_config_without_sizes(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_text_model", "vocab_size": 99}))
    refused(folder, "hidden_size: missing")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tensors: tensors.update(extra=np.zeros(2, np.float32)), "extra.*unexpected"),
        (lambda tensors: tensors.pop("text_model.final_layer_norm.bias"), "missing for norm/bias"),
        (lambda tensors: tensors.update({"final_layer_norm.bias": np.zeros(24, np.float32)}), "final_layer_norm.*already"),
    ],
    ids=["extra", "no norm", "under both names"],
)
def test_other_tensors(folder, change, word):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, word)


def test_texts_that_are_too_long():
    with pytest.raises(BadInput, match="12 tokens, expected at most 11, for which CLIP has positions"):
        read_text_encoder(GOLDENS / "clip_l").ids(np.ones((1, 12), int))
    with pytest.raises(BadInput, match="max_length: got 12, expected at most 11"):
        read_text_encoder(GOLDENS / "clip_l", max_length=12)
