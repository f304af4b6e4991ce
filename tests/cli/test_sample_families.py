"""A Flux pipeline's folder through all verbs that draw texts; what does not fit, in one line of error."""

import json
import shutil

import numpy as np
import pytest
import tiny_diffusers as tiny

import graftax
from graftax.data.latents import open_latents
from graftax.data.text.store import open_store
from graftax.evaluate.geneval.folder import read_drawn

SMALL = ("--steps=1", "--batch-size=2")
PROMPTS = ("a red cat", "two dogs")


def write(root, guidance):
    """A pipeline of schnell, with `guidance` of dev. Texts are short; images of one by one token, where nobody says it."""
    tiny.flux(guidance, transformer=tiny.flux_transformer(guidance), vae=tiny.vae()).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    return write(tmp_path_factory.mktemp("schnell") / "pipeline", False)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Its transformer saved as ours, for images of 4x4 numbers and texts of 9 tokens."""
    root = tmp_path_factory.mktemp("dev")
    pipeline = write(root / "pipeline", True)
    model = graftax.load(pipeline, input_size=4, text_tokens=9)
    graftax.save(model, root / "model")
    return root


@pytest.fixture
def copied(schnell, tmp_path):
    return shutil.copytree(schnell, tmp_path / "copied")


@pytest.mark.slow
def test_guidance_is_a_condition(run, dev, tmp_path):
    """3.5 unless told otherwise; classifier-free guidance is away from the negative prompt."""
    argv = ("sample", dev / "pipeline", "--prompt=a red cat", "--size", 8, 8, "--steps=2", "--latents", dev / "pipeline")
    found = {}
    for name, more in {
        "usual": (), "same": ("--guidance=3.5",), "other": ("--guidance=1",),
        "away": ("--cfg-scale=2", "--negative=two dogs"),
    }.items():  # fmt: skip
        code, _, err = run(*argv, *more, "--out", tmp_path / f"{name}.npz")
        assert code == 0, err
        with np.load(tmp_path / f"{name}.npz") as file:
            found[name] = file["images"].astype(int)
    assert np.abs(found["same"] - found["usual"]).max() == 0
    assert np.abs(found["other"] - found["usual"]).max() > 0
    assert np.abs(found["away"] - found["usual"]).max() > 0


def test_texts_are_encoded_once_and_drawn(run, refused, dev, tmp_path):
    """A store with pooled vectors and without masks; what is drawn from it says its guidance."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    encoded = ("encode", "--text", tmp_path / "prompts.txt", "--text-encoder", dev / "pipeline")
    assert run(*encoded, tmp_path / "text", "--max-length=9")[0] == 0
    store = open_store(tmp_path / "text")
    assert (store.manifest.pooled, store.manifest.unmasked, store.shape) == (20, True, (9, tiny.WIDTH))
    argv = ("synthesize", dev / "model", tmp_path / "text", tmp_path / "drawn", *SMALL, "--preview=0")
    code, _, err = run(*argv, "--guidance=2")
    assert code == 0, err
    found = open_latents(tmp_path / "drawn")
    assert (len(found), found.manifest.protocol["guidance"]) == (2, 2.0)
    batch = found.read(np.arange(2), np.zeros(2, int), 0)
    assert {name: array.shape for name, array in batch.items()} == {
        "image": (2, 4, 4, 16), "text": (2, 9, tiny.WIDTH), "pooled": (2, 20), "guidance": (2,)
    }  # fmt: skip
    assert batch["guidance"].tolist() == [2.0, 2.0]
    assert "drawn: a latent set of guidance 2.0, expected 3.5, or another folder" in refused(*argv)
    assert run(*encoded, tmp_path / "long")[0] == 0
    argv = ("synthesize", dev / "model", tmp_path / "long", tmp_path / "other", *SMALL, "--preview=0")
    assert "texts of 512 tokens, the model takes up to 9" in refused(*argv)


def test_geneval(run, dev, tmp_path):
    line = {"tag": "single_object", "prompt": "a photo of a cow", "include": [{"class": "cow", "count": 1}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    argv = ("geneval", tmp_path / "pictures", "--model", dev / "model", "--prompts", tmp_path / "prompts.jsonl")
    parts = ("--text-encoder", dev / "pipeline", "--latents", dev / "pipeline")
    code, _, err = run(*argv, *parts, "--per-prompt=2", *SMALL, "--guidance=2")
    assert code == 0, err
    protocol = read_drawn(tmp_path / "pictures").protocol
    assert (protocol.guidance, protocol.sampling.sampler) == (2.0, "euler")
    assert "conditioned on guidance 2" in str(protocol)


def test_what_is_in_a_pipeline(run, schnell):
    out = run("inspect", schnell)[1]
    assert "backbone    flux, 2 blocks" in out
    texts = f"CLIP of 3 blocks, width 20 + T5 of 2 blocks, width {tiny.WIDTH}; prompts of 256 tokens"
    assert f"texts       {texts}\n" in out
    assert "VAE         16 channels, 2x2 pixels to each, scaling factor 1.5305, shift 0.0609\n" in out
    parts = json.loads(run("inspect", schnell, "--json")[1])["parts"]
    assert (parts["vae"]["shift_factor"], sorted(parts)) == (
        0.0609, ["prompting", "text_encoder", "text_encoder_2", "vae"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--sampler=ddpm",), "sampler 'ddpm': "),
        (("--skip=5", "--cfg-scale=2"), "--skip: got (5,), expected positions 0..1 of the program"),
        (("--guidance=3.5",), "--guidance: got 3.5, expected none: this flux is not conditioned on any"),
        (("--negative=a dog",), "--negative: got 'a dog' and no guidance (1), expected --cfg-scale above 1"),
        (("--text-encoder={p}/text_encoder_2",), "conditions: got ['text', 'text_mask'], expected ['pooled', 'text']"),
        (("--size", "6", "8"), "size: got 6 8, expected multiples of 4 pixels"),
    ],
)
def test_refused(refused, schnell, tmp_path, flags, word):
    flags = [text.format(p=schnell) for text in flags]
    assert word in refused("sample", schnell, "--prompt=a cat", *flags, "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_guidance_out_of_range(refused, dev, tmp_path):
    argv = ("sample", dev / "pipeline", "--prompt=a cat", "--out", tmp_path / "x.png")
    assert "--guidance: got -1, expected 0 or more, finite" in refused(*argv, "--guidance=-1")
    assert "--guidance: got nan, expected 0 or more, finite" in refused(*argv, "--guidance=nan")


def test_a_part_is_missing(refused, copied, tmp_path):
    shutil.rmtree(copied / "text_encoder_2")
    line = refused("sample", copied, "--prompt=a cat", "--out", tmp_path / "x.png")
    assert "a pipeline without text_encoder_2/config.json, expected it, or a text encoder's own folder" in line


def test_a_transformer_of_another_family(refused, copied, tmp_path):
    shutil.rmtree(copied / "transformer")
    tiny.sd3_transformer().save_pretrained(copied / "transformer")
    line = refused("sample", copied, "--prompt=a cat", "--out", tmp_path / "x.png")
    expected = "a 'SD3Transformer2DModel', expected FluxTransformer2DModel, as model_index.json says FluxPipeline"
    assert f"transformer/config.json: {expected}" in line


def test_the_empty_prompt_is_what_sd3_is_guided_away_from(refused, tmp_path):
    """From a pipeline it comes by itself; in Python it must be given."""
    tiny.sd3_transformer().save_pretrained(tmp_path / "transformer")
    model = graftax.load(tmp_path / "transformer")
    cond = {"text": np.zeros((1, 9, tiny.WIDTH), np.float32), "pooled": np.zeros((1, 44), np.float32)}
    with pytest.raises(graftax.BadInput, match="an SD3 brings none, expected null_cond, the empty prompt"):
        graftax.sample(model, cond=cond)
