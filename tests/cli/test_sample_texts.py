"""`graftax sample` of texts: a pipeline's folder, parts named one by one, models of words; what is refused, in one line."""

import json
import shutil
import weakref

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import pixart, write_pipeline

import graftax
from graftax import api
from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.data.pixels.decoding import decoder_for
from graftax.diffusion import image_keys
from graftax.evaluate.pictures import to_uint8
from graftax.testing import random_params

PROMPTS = ["a red cat", "two cats"]
FEW = ("--steps=2", "--batch-size=4")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("whole") / "pipeline")


@pytest.fixture
def copied(pipeline, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(pipeline, tmp_path / "copied")


def words_spec(**changes):
    sizes = {"input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
    words = {"words": 78, "text_width": 8, "text_tokens": 16, "text_blocks": 1, "text_heads": 2, "vocabulary": "scenes"}
    return pixart_spec(**sizes, **{**words, **changes})


@pytest.fixture
def reader(tmp_path):
    """A model of scenes' words that draws pixels."""
    save_model(tmp_path / "reader", words_spec(), random_params(words_spec(), jax.random.key(0)), {})
    return tmp_path / "reader"


def test_a_pipelines_folder_is_all_it_takes(run, pipeline, tmp_path, monkeypatch):
    """As `graftax.sample` draws with `graftax.text_encoder`, and the encoder is gone before the model is placed."""
    alive = []

    def opened(*args, open_encoder=api.text_encoder, **settings):
        encoder = open_encoder(*args, **settings)
        alive.append(weakref.ref(encoder))
        return encoder

    def placed(model, dtype, place=api.place):
        assert [one() for one in alive] == [None]
        return place(model, dtype)

    monkeypatch.setattr(api, "text_encoder", opened)
    monkeypatch.setattr(api, "place", placed)
    argv = ["sample", pipeline, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--per-prompt=2", *FEW]
    code, out, _ = run(*argv, "--out", tmp_path / "x.npz")
    assert (code, "4 images, DPM-Solver++ 2M, 2 steps, guidance 4.5 on all channels, seed 0" in out) == (0, True)
    monkeypatch.undo()
    encoder, model = graftax.text_encoder(pipeline), graftax.load(pipeline)
    latents = graftax.sample(
        model, cond=encoder([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2), null_cond=encoder([""]), steps=2,
        rng=image_keys(jax.random.key(0), 0, 4),
    )  # fmt: skip
    decode = decoder_for(model.spec, "auto", str(pipeline))
    with np.load(tmp_path / "x.npz") as file:
        assert file["captions"].tolist() == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
        assert file["images"].shape == (4, 16, 16, 3)
        off = np.abs(file["images"].astype(int) - to_uint8(decode(np.asarray(latents))))
    assert off.max() <= 1  # padding that is not kept rounds otherwise


def test_the_text_encoder_in_bfloat16(run, refused, pipeline, reader, tmp_path, monkeypatch):
    types = []

    def opened(*args, open_encoder=api.text_encoder, **settings):
        encoder = open_encoder(*args, **settings)
        types.append({str(leaf.dtype) for leaf in jax.tree.leaves(encoder.params)})
        return encoder

    monkeypatch.setattr(api, "text_encoder", opened)
    argv = ("sample", pipeline, "--prompt", PROMPTS[0], *FEW, "--out")
    assert run(*argv, tmp_path / "x.npz")[0] == run(*argv, tmp_path / "y.npz", "--text-dtype=bfloat16")[0] == 0
    assert types == [{"float32"}, {"bfloat16"}]
    with np.load(tmp_path / "x.npz") as whole, np.load(tmp_path / "y.npz") as half:
        assert 0 < np.abs(whole["images"].astype(int) - half["images"]).mean() < 30
    monkeypatch.undo()
    line = refused("sample", reader, "--prompt=a cat", "--text-dtype=bfloat16", "--out", tmp_path / "z.npz")
    assert "text-dtype: got bfloat16, expected none for the words of scenes" in line


def test_parts_named_one_by_one(run, pipeline, tmp_path):
    """An authors' file with what a pipeline has around it; prompts of a file, away from another prompt, at another size."""
    graftax.export(pixart(), tmp_path / "sigma.pt")
    (tmp_path / "prompts.txt").write_text("a red cat\n\ntwo cats\n")
    named = ("--text-encoder", pipeline / "text_encoder", "--latents", pipeline / "vae")
    named += ("--num-heads=2", "--interpolation=1")
    argv = ("sample", tmp_path / "sigma.pt", *named, "--prompts", tmp_path / "prompts.txt", *FEW)
    code, _, err = run(*argv, "--negative=cat", "--size", "24", "16", "--out", tmp_path / "x.npz")
    assert code == 0, err
    assert run(*argv, "--size", "24", "16", "--out", tmp_path / "y.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as file, np.load(tmp_path / "y.npz") as other:
        assert file["images"].shape == (2, 24, 16, 3)
        assert (file["images"] != other["images"]).any(), "--negative changes nothing"


def test_words_are_those_that_the_model_names(run, refused, reader, tmp_path):
    asked = ("--prompt=a red heart", "--prompt=two cats")
    code, _, err = run("sample", reader, *asked, *FEW, "--out", tmp_path / "x.png")
    assert code == 0, err
    width, height = Image.open(tmp_path / "x.png").size
    assert height > width / 2 > 64  # two pictures side by side, magnified, captions below them
    found = graftax.text_encoder(reader)(["a red heart"])["text"]
    np.testing.assert_array_equal(found, graftax.text_encoder("scenes")(["A red heart"])["text"])
    message = refused("sample", reader, "--prompt", "a rde heart", "--out", tmp_path / "y.png")
    assert message.endswith("unknown word 'rde', expected words of scenes; did you mean 'red'?\n")
    assert not (tmp_path / "y.png").exists()


def test_whose_words_may_be_said_later(run, refused, tmp_path):
    spec = words_spec(vocabulary="")
    save_model(tmp_path / "old", spec, random_params(spec, jax.random.key(0)), {})
    argv = ("sample", tmp_path / "old", "--prompt=a cat", *FEW, "--out", tmp_path / "x.npz")
    assert "does not say whose words it reads; expected scenes" in refused(*argv)
    assert run(*argv, "--text-encoder=scenes")[0] == 0
    named = graftax.load(tmp_path / "old", vocabulary="scenes")
    graftax.save(named, tmp_path / "new")
    assert graftax.load(tmp_path / "new").spec == words_spec()
    with pytest.raises(graftax.BadInput, match="vocabulary='chinese': the file says 'scenes'"):
        graftax.load(tmp_path / "new", vocabulary="chinese")


def test_long_captions_are_cut_and_that_is_said_once(run, pipeline, tmp_path):
    long = " ".join(["cat"] * 400)
    argv = ("--prompt", long, "--prompt=a", "--per-prompt=2", *FEW)
    code, _, err = run("sample", pipeline, *argv, "--out", tmp_path / "x.npz")
    assert (code, err.count("exceed 299 tokens and are cut")) == (0, 1)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("demo", "--prompt=a"), "model demo: takes one of 10 classes, expected --labels, or a model of texts"),
        (("{p}", "--labels=1"), "takes texts, expected --prompt or --prompts"),
        (("{p}",), "takes texts, expected --prompt or --prompts"),
        (("{p}", "--labels=1", "--prompt=a"), "got --labels and --prompt, expected those of classes or those of texts"),
        (("{p}", "--negative=a"), "sample --negative: --prompt or --prompts is missing"),
        (("{p}", "--prompt=a", "--prompt= "), "prompts[1]: empty, expected what the picture shows"),
        (("{p}", "--prompts={t}/none.txt"), "none.txt: none in it"),
        (("{p}", "--prompts={t}/lost.txt"), "lost.txt': no such file"),
        (("{p}", "--prompt=a", "--per-prompt=0"), "per-prompt: got 0"),
        (("{p}", "--prompt=a", "--size", "18", "16"), "size: got 18 16, expected multiples of 4 pixels"),
        (("{p}/transformer", "--prompt=a", "--latents={p}"), "--text-encoder: missing, and "),
        (("{p}/text_encoder", "--prompt=a"), "a 't5' of transformers, expected a diffusion transformer"),
        (("{p}/vae", "--prompt=a"), "a 'AutoencoderKL', expected one of"),
        (("{p}", "--prompt=a", "--text-encoder={p}/vae"), "a 'AutoencoderKL', expected a text encoder"),
        (("{p}", "--prompt=a", "--text-encoder={p}/transformer"), "expected a text encoder of model_type t5"),
        (("{p}", "--prompt=a", "--text-encoder=scenes"), "text encoder scenes: text: int32(1, 16), expected float emb"),
        (("{p}", "--prompt=a", "--latents={p}/text_encoder"), "not the config of a diffusers model"),
    ],
)
def test_refused(refused, pipeline, tmp_path, argv, word):
    (tmp_path / "none.txt").write_text("\n\n")
    argv = [text.format(p=pipeline, t=tmp_path) for text in argv]
    assert word in refused("sample", *argv, "--steps=2", "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ("transformer", "a pipeline without transformer/config.json"),
        ("text_encoder", "a pipeline without text_encoder/config.json"),
        ("tokenizer", "no tokenizer.json beside its weights"), ("vae", "these latents have no decoder here"),
    ],
)  # fmt: skip
def test_which_part_of_a_pipeline_is_missing(refused, copied, tmp_path, part, word):
    shutil.rmtree(copied / part)
    assert word in refused("sample", copied, "--prompt=a", "--out", tmp_path / "x.png")


def test_a_text_encoder_of_another_width(refused, pipeline, tmp_path):
    graftax.export(pixart(text_width=24), tmp_path / "other" / "transformer")
    argv = ("sample", tmp_path / "other", "--prompt=a", "--text-encoder", pipeline, "--latents", pipeline)
    assert "text: float32(1, 300, 20), expected float embeddings (1, m, 24)" in refused(*argv, "--out", tmp_path / "x.png")


def test_without_the_library_of_tokenizers(refused, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("graftax.nets.tokenizer.importlib.util.find_spec", lambda name: None)
    assert "pip install 'graftax[text]'" in refused("sample", pipeline, "--prompt=a", "--out", tmp_path / "x.png")


def test_what_is_in_a_pipeline(run, pipeline, reader):
    out = run("inspect", pipeline)[1]
    assert "texts       T5 of 3 blocks, width 20; prompts of 300 tokens, in lower case\n" in out
    assert "VAE         4 channels, 2x2 pixels to each, scaling factor 0.13025\n" in out
    parts = json.loads(run("inspect", pipeline, "--json")[1])["parts"]
    assert (parts["vae"]["scaling_factor"], parts["prompting"]["lower"]) == (0.13025, True)
    out = run("inspect", reader)[1]
    assert ("78 words of scenes" in out, "VAE" in out) == (True, False)


def test_evaluation_is_of_classes(refused, pipeline):
    assert "takes texts, expected one of classes" in refused("evaluate", pipeline)
