"""DINOv2 from transformers folders: the numbers of transformers itself, on random weights."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from graftax.checkpoint.files import sha256
from graftax.errors import BadInput
from graftax.nets import dinov2
from graftax.nets.dinov2_files import load_dinov2

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "image_size": 28}
KINDS = {
    "plain": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "gated": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES)),
}
WEIGHTS = "model.safetensors"


def build(kind):
    """A small model, no weight at its start."""
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=weights[0].numel() ** -0.5) if weights.ndim > 1 else weights.add_(
                0.2 * torch.randn_like(weights)
            )
    return model


@pytest.fixture
def folder(tmp_path):
    build("plain").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("kind", "shape"), [("plain", (28, 28)), ("plain", (16, 40)), ("gated", (28, 28)), ("registers", (16, 40))]
)
def test_tokens_as_transformers(tmp_path, kind, shape):
    theirs = build(kind)
    theirs.save_pretrained(tmp_path)
    spec, params, source = load_dinov2(tmp_path)
    assert (spec.num_register_tokens, spec.use_swiglu_ffn) == (4 * (kind == "registers"), kind == "gated")
    assert source.sha256 == sha256(tmp_path / WEIGHTS)
    images = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    found = jax.jit(dinov2.tokens, static_argnums=0)(spec, params, images)
    assert 0.5 < expected.std() < 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # float32 over two blocks; required 1e-4


def test_the_body_of_a_classifier_and_a_bin_file(folder):
    spec, params, _ = load_dinov2(folder)
    tensors = {f"dinov2.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    torch.save({**tensors, "classifier.weight": torch.zeros(10, 96)}, folder / "pytorch_model.bin")
    found_spec, found, _ = load_dinov2(folder)
    assert found_spec == spec
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "vit"}, "vit"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"patch_size": 32}, "less than patch_size"),
        ({"hidden_size": "48"}, "hidden_size: got '48'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "missing for blocks_2"),
        ({"num_hidden_layers": 1}, r"encoder.layer.1.*unexpected"),
        ({"use_swiglu_ffn": True}, r"mlp.fc1.*shape"),
        ({"image_size": 32}, r"position_embeddings.*shape"),
    ],
)
def test_other_configs_are_refused(folder, changes, word):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BadInput, match=word) as refusal:
        load_dinov2(folder)
    assert str(folder) in str(refusal.value)


def test_other_files_are_refused(folder):
    save_file({**load_file(folder / WEIGHTS), "extra": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(BadInput, match=r"extra.*unexpected"):
        load_dinov2(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadInput, match="no weights"):
        load_dinov2(folder)
    with pytest.raises(BadInput, match="not the config"):
        load_dinov2(folder.parent)
