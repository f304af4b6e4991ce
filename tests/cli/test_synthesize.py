"""`graftax synthesize`, of classes and, with T5's embeddings, of texts."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from graftax import api
from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.data.config import DataConfig
from graftax.data.latents import open_latents
from graftax.data.pixels import images
from graftax.models import init

T5 = Path(__file__).parents[1] / "goldens" / "t5_v1_1"


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "labels.txt").write_text("2\n0\n1\n")
    return tmp_path / "labels.txt"


def test_classes(run, refused, teacher, labels, tmp_path):
    out, quick = tmp_path / "drawn", ("--steps=2", "--batch-size=2", "--latents=none")
    code, said, told = run("synthesize", teacher, labels, out, *quick, "--per-prompt=2")
    assert (code, said.startswith(f"{out}: 6 latents (8, 8, 1) in 1 shards")) == (0, True)
    assert "3 prompts, 6 images; DDIM, 2 steps" in told
    assert "synthesize 6/6 (100%)" in told
    found = open_latents(out)
    assert (found.labels.tolist(), found.class_names) == ([2, 2, 0, 0, 1, 1], ("0", "1", "2"))
    assert len(list((out / "preview").iterdir())) == 6
    line = refused("synthesize", teacher, labels, out, *quick, "--per-prompt=2", "--seed=1")
    assert "a latent set of seed 0, expected 1" in line
    assert run("synthesize", teacher, labels, out, *quick, "--seed=1", "--overwrite", "--preview=0")[0] == 0
    assert len(open_latents(out)) == 3
    assert not (out / "preview").exists()


def test_what_is_wrong_is_said_before_anything_is_written(refused, teacher, labels, tmp_path):
    def said(prompts=labels, *flags):
        return refused("synthesize", teacher, prompts, tmp_path / "out", *flags)

    labels.write_text("2\n3\n")
    assert f"labels {labels} line 2: got '3', expected a class 0..2" in said()
    labels.write_text("\n")
    assert f"labels {labels}: none in it" in said()
    assert "expected a file with a class a line" in said(tmp_path)
    labels.write_text("2\n")
    assert "--per-prompt: got 0, expected 1 or more" in said(labels, "--per-prompt=0")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_pipelines_folder_is_all_it_takes(run, refused, tmp_path, monkeypatch):
    """Pictures are those that `graftax sample` draws of these prompts; no device is used before all is found to fit."""
    pytest.importorskip("tokenizers")
    from tiny_pipeline import write_pipeline

    pipeline = write_pipeline(tmp_path / "pipeline")
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo cats\n")
    encoded = ("encode", "--text", tmp_path / "prompts.txt", tmp_path / "text", "--text-encoder", pipeline)
    assert run(*encoded, "--dtype=float32", "--text-dtype=float32")[0] == 0
    few = ("--steps=2", "--batch-size=2")
    code, _, err = run("synthesize", pipeline, tmp_path / "text", tmp_path / "drawn", *few)
    assert code == 0, err
    assert run("sample", pipeline, "--prompts", tmp_path / "prompts.txt", *few, "--out", tmp_path / "x.npz")[0] == 0
    previews = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "drawn" / "preview").iterdir())]
    with np.load(tmp_path / "x.npz") as sampled:
        assert np.abs(np.stack(previews).astype(int) - sampled["images"]).max() <= 1  # latents are kept as float16
    monkeypatch.setattr(api, "place", lambda model: pytest.fail("a device is used"))
    assert "text store" in refused("synthesize", pipeline, tmp_path, tmp_path / "other")
    assert "not the config of a diffusers model" in refused(
        "synthesize", pipeline, tmp_path / "text", tmp_path / "other", f"--latents={pipeline / 'text_encoder'}"
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_texts_from_a_prompt_file_to_batches(run, refused, tmp_path):
    pytest.importorskip("tokenizers")
    from tiny_tokenizer import write_tokenizer

    encoder = Path(shutil.copytree(T5, tmp_path / "t5"))
    write_tokenizer(encoder)
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo cats\na cat\n")
    text = tmp_path / "text"
    command = ("encode", "--text", tmp_path / "prompts.txt", text, "--text-encoder", encoder)
    assert run(*command, "--max-length=12", "--batch-size=2")[0] == 0
    assert "a text store of encoder_sha256" in refused(*command, "--max-length=13")
    spec = pixart_spec(
        input_size=8, patch_size=2, hidden_size=32, depth=1, num_heads=2, text_width=20, text_tokens=12
    )  # a file of diffusers, without a null caption
    save_model(tmp_path / "model", spec, init(spec, jax.random.key(0)), {"source": "test"})
    quick = ("--steps=2", "--batch-size=2", "--cfg-scale=3")
    draw = ("synthesize", tmp_path / "model", text, tmp_path / "drawn", *quick)
    assert run(*draw)[0] == 0
    data = images.load(DataConfig(source=str(tmp_path / "drawn"), latents="given"))
    images.check_fit(data, spec)
    batch = next(data.batches(3, 0))
    assert batch["text"].shape == (3, 12, 20)
    assert batch["text_mask"].sum(1).min() >= 2
    assert np.isfinite(batch["image"]).all()
    assert "this model's file brings none" in refused(*draw[:3], tmp_path / "other", *quick, "--null=model")
