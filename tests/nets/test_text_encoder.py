"""Text encoders as users have them: folders, prompts, types, meshes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_tokenizer import write_tokenizer

import graftax
from graftax.errors import BadInput, NonFinite
from graftax.nets.text_encoder import read_text_encoder

GOLDEN = Path(__file__).parents[1] / "goldens" / "t5_v1_1"
PROMPTS = ["a red cat", "", " A Cat "]


@pytest.fixture
def folder(tmp_path):
    """A T5 by itself."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "t5"))
    write_tokenizer(folder)
    return folder


@pytest.fixture
def pipeline(folder):
    """A whole pipeline around it."""
    root = folder.parent / "pipeline"
    shutil.copytree(GOLDEN, root / "text_encoder")
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer")
    return name_pipeline(root, "PixArtSigmaPipeline")


def name_pipeline(root, name):
    content = {"_class_name": name, "text_encoder": ["transformers", "T5EncoderModel"]}
    (root / "model_index.json").write_text(json.dumps(content))
    return root


def close(found, expected):
    return np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_prompts_become_conditions(folder):
    encoder = graftax.text_encoder(folder, max_length=12)
    cond = encoder(PROMPTS)
    assert cond.keys() == {"text", "text_mask"}
    assert (cond["text"].shape, cond["text"].dtype) == ((3, 12, 20), jnp.float32)
    np.testing.assert_array_equal(cond["text_mask"].sum(axis=1), [4, 1, 7])
    by_ids = encoder.ids(*encoder.tokenize(PROMPTS))
    assert by_ids.keys() == {"last"}
    assert close(by_ids["last"], cond["text"])
    alone = encoder([PROMPTS[0]])
    assert close(alone["text"][0, :4], cond["text"][0, :4])


def test_the_goldens_ids():
    """Of a folder without a tokenizer, which prompts need."""
    golden = np.load(GOLDEN / "io.npz")
    encoder = graftax.text_encoder(GOLDEN)
    found = encoder.ids(golden["input_ids"], golden["attention_mask"], hidden=True)
    assert [close(state, golden[f"hidden.{i}"]) for i, state in enumerate(found["hidden"])] == [True] * 4
    assert close(found["last"], golden["out_masked"])
    assert close(encoder.ids(golden["long_ids"].tolist())["last"], golden["out_long"])
    with pytest.raises(BadInput, match=r"no tokenizer.json.*transformers.*save_pretrained"):
        encoder(["a"])


def test_a_pipeline_says_how_prompts_are_treated(pipeline, folder):
    sigma = read_text_encoder(pipeline)
    ids, mask = sigma.tokenize([" A Cat "])
    assert ids.shape == (1, 300)
    np.testing.assert_array_equal(ids, sigma.tokenize(["a cat"])[0])
    np.testing.assert_array_equal(ids, read_text_encoder(pipeline / "text_encoder").tokenize(["A CAT"])[0])
    own = read_text_encoder(folder)
    assert own.prompting.length == 300
    assert own.tokenize(["A Cat"])[1].sum() > mask.sum() == 3  # a, cat, end
    assert read_text_encoder(pipeline, max_length=7).tokenize(["a"])[0].shape == (1, 7)
    name_pipeline(pipeline, "PixArtAlphaPipeline")
    assert read_text_encoder(pipeline).tokenize(["a"])[0].shape == (1, 120)


def test_what_a_result_depends_on(folder, pipeline):
    first = graftax.text_encoder(folder).sha256
    assert first == graftax.text_encoder(folder).sha256
    others = [
        graftax.text_encoder(folder, max_length=20), graftax.text_encoder(folder, dtype="bfloat16"),
        graftax.text_encoder(pipeline), graftax.text_encoder(GOLDEN),
    ]  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    assert len({first, *(other.sha256 for other in others), graftax.text_encoder(folder).sha256}) == 6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda root: name_pipeline(root, "StableDiffusionPipeline"), "a 'StableDiffusionPipeline', expected one of PixArt"),
        (lambda root: (root / "model_index.json").write_text("[]"), "not that of a pipeline"),
        (lambda root: shutil.rmtree(root / "text_encoder"), "config.json"),
        (lambda root: (root / "tokenizer" / "tokenizer.json").write_text("{}"), "not a tokenizer"),
        (lambda root: (root / "model_index.json").unlink(), "no text encoder, expected a folder with config.json"),
    ],
    ids=["another pipeline", "no index", "no encoder", "no tokenizer", "no name"],
)
def test_other_pipelines(pipeline, change, word):
    change(pipeline)
    with pytest.raises(BadInput, match=word) as refusal:
        graftax.text_encoder(pipeline)
    assert "\n" not in str(refusal.value)


def test_folders_in_each_others_place(folder, pipeline):
    (folder / "nothing").mkdir()
    for path, word in (
        (folder / "lost", "no such folder"), (folder / "nothing", "no text encoder"),
        (folder / "model.safetensors", "a file"), (3, "expected text or a path"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=word):
            graftax.text_encoder(path)
    for path in (folder, pipeline / "text_encoder"):
        with pytest.raises(BadInput, match="a 't5' of transformers, expected a diffusion transformer"):
            graftax.load(path)


def test_arguments_are_checked_before_files_are_read(tmp_path):
    for arguments, word in (
        ({"max_length": 0}, "max_length: got 0"), ({"max_length": "300"}, "max_length: got '300'"),
        ({"dtype": "int8"}, "dtype"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=word):
            graftax.text_encoder(tmp_path / "lost", **arguments)


@pytest.mark.parametrize(
    ("ids", "mask", "word"),
    [
        ([1, 2], None, "expected integers"), ([[]], None, "expected integers"), ([[1.0]], None, "float64"),
        ([[120]], None, r"120\.\.120, expected tokens in 0\.\.119"), ([[-1, 3]], None, r"-1\.\.3"),
        ([[1, 2]], [[1]], r"attention_mask: shape \(1, 1\)"),
    ],
)  # fmt: skip
def test_ids_that_are_none(ids, mask, word):
    with pytest.raises(BadInput, match=word):
        read_text_encoder(GOLDEN).ids(ids, mask)


def test_weights_beyond_their_type(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NonFinite, match=r"blocks_0/fc2/kernel.*float16"):
        graftax.text_encoder(folder, dtype="float16")


SPLIT = """
import json, sys
import jax, numpy as np
import graftax
from graftax.train import MeshConfig

assert jax.device_count() == 4
found = {}
for name, mesh, counts in ("fsdp", MeshConfig(fsdp=4), (4, 3)), ("all", MeshConfig(fsdp=2, tensor=2), (4,)):
    encoder = graftax.text_encoder(sys.argv[1], max_length=9, mesh=mesh.build())
    kernel = encoder.params["blocks_1"]["gate"]["kernel"]
    for count in counts:
        text = encoder(["a red cat", "", "two cats", "a"][:count])["text"]
        parts = [array.addressable_shards[0].data.size / array.size for array in (kernel, text)]
        found[f"{name} {count}"] = {"parts": parts, "text": np.asarray(text).tolist()}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_split_over_four_devices(folder):
    """Weights and, where their number divides, texts; as on one device to float32's rounding in sums of another order."""
    rng = np.random.default_rng(0)
    config = json.loads((folder / "config.json").read_text()) | {"d_model": 48, "d_ff": 96, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {20: 48, 36: 96}
    weights = {
        name: rng.standard_normal([sizes.get(size, size) for size in tensor.shape], np.float32)
        for name, tensor in load_file(folder / "model.safetensors").items() if "block.2" not in name
    }  # fmt: skip
    weights = {name: tensor * tensor.shape[-1] ** -0.5 for name, tensor in weights.items()}
    save_file(weights | {"shared.weight": weights["encoder.embed_tokens.weight"]}, folder / "model.safetensors")
    expected = np.asarray(graftax.text_encoder(folder, max_length=9)(["a red cat", "", "two cats", "a"])["text"])
    flags = "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SPLIT, folder]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["fsdp 4"]["parts"] == [0.25, 0.25]
    assert found["all 4"]["parts"] == [0.5, 0.5]
    for name, split in found.items():
        assert np.abs(split["text"] - expected[: int(name[-1])]).max() < 1e-5 * np.abs(expected).max()
