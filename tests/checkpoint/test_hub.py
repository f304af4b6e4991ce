"""Addresses hf://ORG/NAME, against a stand-in for the Hub on this machine."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_server import COMMIT, serving
from PIL import Image
from tiny_pipeline import write_pipeline

import graftax
from graftax.checkpoint import save_model
from graftax.checkpoint.files import demo_path
from graftax.checkpoint.hub import Absent, called, fetched, is_hub, pinned
from graftax.data.config import DataConfig
from graftax.data.pixels import images
from graftax.errors import BadInput
from graftax.models import Meta, Model
from graftax.nets.small import load_autoencoder
from graftax.nets.vae_files import find_vae, stats_path
from graftax.study.aot import named_spec
from graftax.testing import random_params, tiny_spec

FOLDER = ("config.json", "diffusion_pytorch_model.safetensors")

constants = pytest.importorskip("huggingface_hub.constants")


def write(folder, **files):
    """Small files, by name with "__" for "/"."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """ours/pipe: a pipeline with everything twice; ours/own: a folder of ours; ours/loose: files alone; ours/va: a VAE's;
    ours/set: data."""
    root = tmp_path_factory.mktemp("hub") / "ours"
    spec = tiny_spec(hidden_size=16, depth=2, num_heads=2)
    model = Model(spec, random_params(spec, jax.random.key(0)), Meta())
    theirs = model.replace(spec=tiny_spec(hidden_size=16, depth=2, num_heads=2, compat="diffusers"))
    graftax.export(theirs, root / "pipe" / "transformer")
    (root / "pipe" / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"never fetched")
    (root / "pipe" / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never fetched")
    for name in ("model_index.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json"):
        content = {"_class_name": "DiTPipeline", "file": name}  # each of its own: the cache keeps alike ones once
        write(root / "pipe", **{name: json.dumps(content)})
    write(root / "pipe" / "vae", **{"diffusion_pytorch_model.bin": "old", "README.md": "words"})
    shards = {f"model-0000{i}-of-00002.safetensors": "s" for i in (1, 2)} | {"model.safetensors.index.json": "{}"}
    write(root / "pipe" / "text_encoder", **shards, **{"pytorch_model.bin": "b", "pytorch_model.bin.index.json": "{}"})
    write(root / "pipe" / "tokenizer", **{"spiece.model": "s", "merges.txt": "m", "README.txt": "words"})
    save_model(root / "own", model.spec, model.params, {})
    (root / "loose").mkdir()
    graftax.export(model, root / "loose" / "dit.pt")
    (root / "loose" / "autoencoder.safetensors").write_bytes(demo_path("autoencoder.safetensors").read_bytes())
    write(root / "va", **{"vavae.pt": "v", "latents_stats.pt": "l", "README.md": "words"})
    for i, label in enumerate(("cat", "dog")):
        (root / "set" / "train" / label).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / "set" / "train" / label / "0.png")
    return root.parent, model


@pytest.fixture
def server(repositories):
    with serving(repositories[0]) as (hub, address):
        hub.address = address
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The stand-in, an empty cache, and the library told of both in place of its environment, which it has read."""
    for name, value in {
        "ENDPOINT": server.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    return server


def assert_same(found, model):
    assert found.spec == model.spec
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)


def test_a_pipeline_gives_its_transformer_and_nothing_else(hub, repositories):
    model = graftax.load("hf://ours/pipe", num_heads=2)
    assert_same(model, repositories[1])
    assert sorted(hub.downloads()) == ["model_index.json", *(f"transformer/{name}" for name in FOLDER)]
    assert model.meta.source == f"hf://ours/pipe@{COMMIT}"
    before = len(hub.asked)
    for again in ("hf://ours/pipe@v1", f"hf://ours/pipe@{COMMIT}/transformer", Path("hf://ours/pipe/transformer/")):
        assert_same(graftax.load(again, num_heads=2), repositories[1])
    assert len(hub.downloads()) == 3
    assert len(hub.asked) - before == 2  # what "v1" and the main branch are; a commit is what it is
    assert graftax.load(model.meta.source).meta.sha256 == model.meta.sha256


def test_folders_of_ours_and_files_by_name(hub, repositories):
    assert_same(graftax.load("hf://ours/own"), repositories[1])
    assert sorted(hub.downloads()) == ["graftax.json", "model.safetensors"]
    assert_same(graftax.load("hf://ours/loose/dit.pt", num_heads=2), repositories[1])
    assert load_autoencoder("hf://ours/loose/autoencoder.safetensors")[0] == load_autoencoder("demo")[0]
    assert hub.downloads()[2:] == ["dit.pt", "autoencoder.safetensors"]
    assert named_spec("hf://ours/own") == repositories[1].spec


def test_each_part_of_a_pipeline_is_fetched_when_it_is_wanted(hub):
    found = find_vae("hf://ours/pipe")
    assert found == find_vae(Path("hf://ours/pipe") / "vae")
    assert found.parts[-3:] == ("snapshots", COMMIT, "vae")
    assert sorted(hub.downloads()) == ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.bin"]
    assert find_vae("hf://ours/own/vae") is None
    folder = fetched("hf://ours/pipe", "text_encoder", "tokenizer")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "vae" not in path.parts}
    assert there == {
        "text_encoder/config.json", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.safetensors.index.json",
        "tokenizer/spiece.model", "tokenizer/tokenizer.json", "tokenizer/merges.txt", "model_index.json",
    }  # fmt: skip
    assert (called(folder), called(found), pinned(found)) == ("pipe", "vae", f"hf://ours/pipe@{COMMIT}/vae")


def test_a_stable_diffusion_3_without_its_t5_comes_with_what_says_how_wide_texts_are(hub, repositories):
    pytest.importorskip("diffusers")
    from tiny_diffusers import stable_diffusion_3

    stable_diffusion_3(text_encoder_3=None, tokenizer_3=None).save_pretrained(repositories[0] / "ours" / "sd3")
    texts = graftax.text_encoder("hf://ours/sd3")(["a red heart"])
    local = graftax.text_encoder(repositories[0] / "ours" / "sd3")(["a red heart"])
    jax.tree.map(np.testing.assert_array_equal, texts, local)
    assert [name for name in hub.downloads() if name.startswith("transformer/")] == ["transformer/config.json"]


def test_a_vaes_file_comes_with_the_statistics_beside_it(hub):
    found = find_vae("hf://ours/va/vavae.pt")
    assert sorted(hub.downloads()) == ["latents_stats.pt", "vavae.pt"]
    assert stats_path(found).read_text() == "l"


def test_data_come_whole(hub):
    found = images.load(DataConfig(source="hf://ours/set/train", size=8))
    assert (len(found.raw_train), found.num_classes) == (2, 2)
    assert found.described.startswith("hf://ours/set/train")
    assert sorted(hub.downloads()) == ["train/cat/0.png", "train/dog/0.png"]


def test_without_the_network_the_cache_answers(hub, repositories, monkeypatch, tmp_path):
    graftax.load("hf://ours/own")
    graftax.load("hf://ours/loose/dit.pt", num_heads=2)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(graftax.load("hf://ours/own"), repositories[1])
    for path in ("hf://ours/pipe", "hf://ours/own@v2"):
        with pytest.raises(BadInput, match=r"^hf://ours/.*: not in the cache .*cache, and HF_HUB_OFFLINE is set$"):
            graftax.load(path)
    with pytest.raises(BadInput, match=r"^hf://ours/loose/autoencoder.safetensors: not in the cache"):
        load_autoencoder("hf://ours/loose/autoencoder.safetensors")
    assert len(hub.asked) == asked
    # A cache that another program has filled, without a list of what the repository has.
    for listing in (tmp_path / "cache").rglob("trees"):
        listing.rename(tmp_path / "gone" if "own" in str(listing) else tmp_path / "gone too")
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    assert_same(graftax.load("hf://ours/own"), repositories[1])


def test_the_hub_is_down(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"^hf://ours/own: not in the cache, and the Hub at http://127\.0\.0\.1:9 cannot"):
        graftax.load("hf://ours/own")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://ours/nothing", "no such repository at the Hub; a private one expects that .* `hf auth login`"),
        ("hf://ours/own@v2", "no such revision of ours/own"),
        ("hf://ours/secret", "gated, expected that its page has given you access .*`hf auth login`"),
        ("hf://ours/own/transfomer", "no such file or folder in the repository$"),
        ("hf://ours/pipe/transfomer", "no such file or folder in the repository; did you mean 'transformer'"),
        ("hf://ours/loose", "no model in it, expected config.json or graftax.json or transformer/, or one of its "
                            "files by name: 'autoencoder.safetensors', 'dit.pt'"),
        ("hf://ours/set", "no model in it, expected config.json or graftax.json or transformer/$"),
        ("hf://ours", "expected a model's address hf://ORG/NAME"),
        ("hf://datasets/ours/set", "expected a model's address hf://ORG/NAME"),
        ("hf://ours/own/../../x", "leads out of the repository"),
        ("hf://ours--x/own", "no name of a repository, expected ORG/NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_in_one_line(hub, repositories, path, message):
    if path.endswith("secret"):
        hub.gated.add("ours/secret")
        write(repositories[0] / "ours" / "secret", **{"config.json": "{}", "model.safetensors": "x"})
    with pytest.raises(BadInput, match=f": {message}") as caught:
        graftax.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_in_one_line(hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    with pytest.raises(BadInput, match=r"^hf://ours/own: the cache .*cache cannot be written \(no space left on device\)$"):
        graftax.load("hf://ours/own")


def test_absent_is_told_from_out_of_reach(hub):
    with pytest.raises(Absent):
        fetched("hf://ours/set", "vae")
    with pytest.raises(Absent, match="no such file or folder"):
        fetched("hf://ours/set/test", whole=True)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(BadInput, match=r"^hf://ours/own: needs the package huggingface_hub, .* 'graftax\[hub\]'$"):
        graftax.load("hf://ours/own")


def test_other_paths_are_left_alone(tmp_path):
    assert not is_hub("gs://bucket/model")
    assert fetched(tmp_path / "model") == tmp_path / "model"
    assert (pinned(tmp_path / "model"), called(tmp_path / "model")) == ("model", "model")


def test_the_command_line_and_the_environment(server, repositories, tmp_path):
    """HF_ENDPOINT and HF_HOME are the library's own, read as it starts."""
    env = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "graftax.cli", "inspect", "hf://ours/own", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["blocks"]
    assert done.stderr.startswith("fetch hf://ours/own 1/1 (100%)")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "hub" / "models--ours--own" / "snapshots" / COMMIT / "graftax.json").exists()


@pytest.mark.slow
def test_a_pipelines_parts_are_told_as_of_its_folder(hub, repositories, run):
    """For which of text encoder and VAE nothing but what describes them is fetched."""
    pipeline = write_pipeline(repositories[0] / "ours" / "told")
    for more in ((), ("--json",)):
        (code, out, err), local = run("inspect", "hf://ours/told", *more), run("inspect", pipeline, *more)
        assert code == 0, err
        there = f"hf://ours/told@{COMMIT}"
        assert out.replace(there, "told") == local[1].replace(str(pipeline), "told")
    assert "VAE" in run("inspect", "hf://ours/told")[1]
    assert sorted(hub.downloads()) == [
        "model_index.json", "text_encoder/config.json", *(f"transformer/{name}" for name in FOLDER), "vae/config.json",
    ]  # fmt: skip
    assert "parts" not in json.loads(run("inspect", "hf://ours/own", "--json")[1])
    assert "parts" not in json.loads(run("inspect", "hf://ours/loose/dit.pt", "--json", "--num-heads=2")[1])


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_pictures_are_drawn_from_a_pipelines_address(repositories, run, tmp_path):
    """Transformer, text encoder, tokenizer and VAE, as from the folder itself."""
    pipeline = write_pipeline(repositories[0] / "ours" / "pixart")
    for model, file in ((pipeline, "a.npz"), ("hf://ours/pixart", "b.npz")):
        code, _, err = run("sample", model, "--prompt=a red cat", "--steps=2", "--out", tmp_path / file)
        assert code == 0, err
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "b.npz") as fetched:
        np.testing.assert_array_equal(fetched["images"], ours["images"])
