"""What is no T5 encoder, or a damaged one, is refused in one line that names the file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile_files import CORPUS
from safetensors.numpy import load_file, save_file

from graftax.errors import BadInput
from graftax.nets.text_encoder import read_text_encoder

GOLDEN = Path(__file__).parents[1] / "goldens" / "t5_v1_1"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING = "encoder.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "t5"))


def set_json(path, **changes):
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))


def refused(folder, word):
    with pytest.raises(BadInput, match=word) as refusal:
        read_text_encoder(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "bert"}, "a 'bert', expected a text encoder"),
        ({"model_type": "umt5"}, "missing for blocks_1/positions/embedding"),
        ({"model_type": "absent", "_class_name": "PixArtTransformer2DModel"}, "a 'PixArtTransformer2DModel'"),
        ({"model_type": ["t5"]}, "a list"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj: 'relu'"),
        ({"feed_forward_proj": "absent"}, "feed_forward_proj"),
        ({"d_kv": "absent"}, "d_kv: missing"),
        ({"d_model": "20"}, "d_model: got '20'"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"num_layers": 10**9}, "num_layers: 1000000000, expected at most"),
        ({"num_layers": 4}, "missing for blocks_3"),
        ({"num_layers": 2}, r"encoder.block.2.*unexpected"),
        ({"d_ff": 40}, r"wi_0.*shape"),
        ({"vocab_size": 121}, r"weight: shape \(120, 20\)"),
        ({"relative_attention_num_buckets": 30}, "30 buckets"),
        ({"relative_attention_max_distance": 8}, "max_distance 8"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"pad_token_id": 120}, r"pad_token_id: got 120"),
    ],
)
def test_other_configs(folder, changes, word):
    set_json(folder / "config.json", **changes)
    refused(folder, word)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tensors: tensors.update(extra=np.zeros(2, np.float32)), "extra.*unexpected"),
        (lambda tensors: tensors.pop("encoder.final_layer_norm.weight"), "missing for norm/scale"),
        (lambda tensors: [tensors.pop(name) for name in (EMBEDDING, "shared.weight")], "missing for embed/embedding"),
        (lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING] + 1}), "differs from shared.weight"),
        (lambda tensors: tensors.update({"shared.weight": np.zeros((120, 20), np.int32)}), "differs|int32"),
        (
            lambda tensors: tensors.update(
                {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros((32, 4), np.float32)}
            ),
            "block.1.*unexpected",
        ),
    ],
    ids=["extra", "no norm", "no embedding", "two embeddings", "integers", "as UMT5"],
)
def test_other_tensors(folder, change, word):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, word)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, "no weights")


# --- Shards --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(folder):
    """The same in two files."""
    tensors = sorted(load_file(folder / WEIGHTS).items())
    parts = {f"model-{i}.safetensors": dict(tensors[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, folder / name)
    (folder / WEIGHTS).unlink()
    set_json(folder / INDEX, weight_map={name: file for file, part in parts.items() for name in part})
    return folder


def test_shards_are_one_model(shards):
    found, whole = read_text_encoder(shards), read_text_encoder(GOLDEN)
    assert found.source.name == INDEX
    np.testing.assert_array_equal(found.params["blocks_2"]["fc2"]["kernel"], whole.params["blocks_2"]["fc2"]["kernel"])
    before = found.source.sha256
    tensors = load_file(shards / "model-1.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, shards / "model-1.safetensors")
    assert read_text_encoder(shards).source.sha256 != before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda folder: (folder / "model-1.safetensors").unlink(), "shard model-1.safetensors is missing"),
        (lambda folder: (folder / INDEX).write_text("[]"), "not the index"),
        (lambda folder: set_json(folder / INDEX, weight_map={"shared.weight": 3}), "shard int"),
        (lambda folder: set_json(folder / INDEX, weight_map={"shared.weight": ["a"]}), "not the index"),
        (lambda folder: set_json(folder / INDEX, weight_map={"shared.weight": "../t5/model-0.safetensors"}), "beside it"),
        (lambda folder: set_json(folder / INDEX, weight_map={"shared.weight": "/etc/passwd"}), "beside it"),
        (lambda folder: set_json(folder / INDEX, weight_map={"lost": "model-0.safetensors"}), "tensor 'lost' is missing"),
        (lambda folder: set_json(folder / INDEX, weight_map={}), "missing for"),
        (lambda folder: set_json(folder / INDEX, weight_map={"shared.weight": "config.json"}), "suffix '.json'"),
    ],
    ids=["file gone", "a list", "a number", "lists", "outside", "absolute", "tensor gone", "empty", "no weights"],
)
def test_indices_that_lie(shards, change, word):
    change(shards)
    refused(shards, word)


@pytest.mark.parametrize("name", ["os_system", "zip_bomb", "offset_outside", "truncated", "bare_pickle"])
def test_hostile_shards(folder, name):
    (folder / WEIGHTS).unlink()
    canary = folder / "canary"
    CORPUS[name](folder / "pytorch_model-0.bin", canary)
    set_json(folder / "pytorch_model.bin.index.json", weight_map={"shared.weight": "pytorch_model-0.bin"})
    refused(folder, "pytorch_model-0.bin")
    assert not canary.exists()
