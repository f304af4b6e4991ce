"""What pipelines make of prompts: as `encode_prompt` of diffusers on small random models."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_diffusers import POSITIONS, PROMPTS, WIDTH, aura_flow, clip, flux, stable_diffusion_3, t5
from tiny_tokenizer import CLIP_VOCABULARY, write_clip_tokenizer

import graftax
from graftax.errors import BadInput
from graftax.nets.text_encoder import read_text_encoder
from graftax.pages.describe import describe_parts, parts_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sd3_pipeline(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd3")
    pipeline = stable_diffusion_3()
    pipeline.save_pretrained(root)
    return pipeline, root


@pytest.fixture
def sd3(sd3_pipeline, tmp_path):
    """A folder that may be changed."""
    return shutil.copytree(sd3_pipeline[1], tmp_path / "sd3")


def close(found, expected):
    expected = expected.numpy()
    assert found.shape == expected.shape
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def as_diffusers(pipeline, encoder, **settings):
    """Prompts, and the empty one that guidance leads away from."""
    with torch.no_grad():
        text, null, pooled, null_pooled = pipeline.encode_prompt(PROMPTS, None, None, device="cpu", **settings)
    for cond, expected in ((encoder(PROMPTS), (text, pooled)), (encoder([""] * 3), (null, null_pooled))):
        assert cond.keys() == {"text", "pooled"}
        close(cond["text"], expected[0])
        close(cond["pooled"], expected[1])


@pytest.mark.slow
def test_stable_diffusion_3(sd3_pipeline):
    pipeline, root = sd3_pipeline
    encoder = graftax.text_encoder(root)
    as_diffusers(pipeline, encoder)
    assert encoder(["a"])["text"].shape == (1, POSITIONS + 256, WIDTH)
    as_diffusers(pipeline, graftax.text_encoder(root, max_length=30), max_sequence_length=30)


def test_tokenizers_in_older_files(sd3_pipeline, sd3):
    for name, settings in (("tokenizer", {}), ("tokenizer_2", {"pad_token": "!"})):
        shutil.rmtree(sd3 / name)
        (sd3 / name).mkdir()
        write_clip_tokenizer(sd3 / name, **settings)
    as_diffusers(sd3_pipeline[0], graftax.text_encoder(sd3))


def test_stable_diffusion_3_without_its_t5(tmp_path, capsys):
    pipeline = stable_diffusion_3(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path)
    encoder = graftax.text_encoder(tmp_path)
    assert "no text_encoder_3, zeros stand for its texts" in capsys.readouterr().err
    as_diffusers(pipeline, encoder)
    assert not encoder(PROMPTS)["text"][:, POSITIONS:].any()
    shutil.rmtree(tmp_path / "transformer")
    with pytest.raises(BadInput, match=r"no text_encoder_3/config.json, nor transformer/config.json"):
        graftax.text_encoder(tmp_path)


@pytest.mark.parametrize(("dynamic", "length"), [(True, 512), (False, 256)], ids=["dev", "schnell"])
def test_flux(dynamic, length, tmp_path):
    pipeline = flux(dynamic)
    pipeline.save_pretrained(tmp_path)
    encoder = graftax.text_encoder(tmp_path)
    with torch.no_grad():
        text, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", max_sequence_length=length)
    cond = encoder(PROMPTS)
    assert cond.keys() == {"text", "pooled"}
    close(cond["text"], text)
    close(cond["pooled"], pooled)
    texts = f"texts       CLIP of 3 blocks, width 20 + T5 of 2 blocks, width {WIDTH}; prompts of {length} tokens"
    assert describe_parts(parts_of(str(tmp_path))) == [texts]
    shutil.rmtree(tmp_path / "scheduler")
    assert graftax.text_encoder(tmp_path, max_length=9)(["a"])["text"].shape == (1, 9, WIDTH)
    with pytest.raises(BadInput, match=r"no scheduler's config.*expected its use_dynamic_shifting.*or max_length"):
        graftax.text_encoder(tmp_path)


def test_aura_flow(tmp_path):
    pipeline = aura_flow()
    pipeline.save_pretrained(tmp_path)
    encoder = graftax.text_encoder(tmp_path)
    with torch.no_grad():
        text, mask, null, _ = pipeline.encode_prompt(PROMPTS, device="cpu")
    for prompts, expected in ((PROMPTS, text), ([""] * 3, null)):
        cond = encoder(prompts)
        assert cond.keys() == {"text"}
        close(cond["text"], expected)
    assert not np.asarray(encoder(PROMPTS)["text"])[mask.numpy()[:, ::20] == 0].any()  # diffusers' mask is as wide as texts


def test_a_clip_by_itself(sd3):
    """In a pipeline of several, with the tokenizer of its own number."""
    encoder = graftax.text_encoder(sd3 / "text_encoder_2")
    cond = encoder(["a red cat!", ""])
    assert {name: value.shape for name, value in cond.items()} == {
        "text": (2, POSITIONS, 24), "text_mask": (2, POSITIONS), "pooled": (2, 24)
    }  # fmt: skip
    np.testing.assert_array_equal(cond["text_mask"].sum(axis=1), [6, 2])
    ids, _ = encoder.tokenize([""])
    assert ids[0, -1] == CLIP_VOCABULARY["!"]
    found = encoder.ids(encoder.tokenize(["a red cat!", ""])[0])
    np.testing.assert_allclose(found["pooled"], cond["pooled"], atol=1e-6)
    assert graftax.text_encoder(sd3 / "text_encoder_2", max_length=5)(["a"])["text"].shape == (1, 5, 24)


def test_what_a_result_depends_on(sd3):
    first = graftax.text_encoder(sd3)
    assert first.sha256 == graftax.text_encoder(sd3).sha256
    half = graftax.text_encoder(sd3, dtype="bfloat16")
    others = [half, graftax.text_encoder(sd3, max_length=20)]
    assert {leaf.dtype for part in half.parts for leaf in jax.tree.leaves(part.params)} == {jnp.dtype("bfloat16")}
    shutil.copyfile(sd3 / "tokenizer" / "tokenizer_config.json", sd3 / "tokenizer_2" / "tokenizer_config.json")
    assert len({one.sha256 for one in (first, *others, graftax.text_encoder(sd3))}) == 4


def replace_part(root, name, model):
    shutil.rmtree(root / name)
    model.save_pretrained(root / name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda root: shutil.rmtree(root / "text_encoder_2"), "a pipeline without text_encoder_2/config.json"),
        (lambda root: shutil.rmtree(root / "tokenizer_2"), "tokenizer_2: no tokenizer.json.*nor vocab.json with merges.txt"),
        (lambda root: shutil.rmtree(root / "tokenizer_3"), "tokenizer_3: no tokenizer.json"),
        (lambda root: replace_part(root, "text_encoder_2", t5()), "a 't5', expected a text encoder of model_type clip_text"),
        (
            lambda root: replace_part(root, "text_encoder_3", t5("UMT5")),
            "a 'umt5', expected a text encoder of model_type t5",
        ),
        (lambda root: replace_part(root, "text_encoder", clip(20, "CLIPTextModel")), "text_encoder: no text_projection"),
        (lambda root: replace_part(root, "text_encoder_2", clip(42)), "text_encoder_3: width 60, expected at least 62"),
        (lambda root: (root / "text_encoder_3" / "model.safetensors").unlink(), "text_encoder_3: no weights"),
    ],
    ids=["no CLIP", "no words", "no pieces", "T5 for CLIP", "UMT5 for T5", "no projection", "too narrow", "no weights"],
)
def test_parts_that_are_missing_or_another_s(sd3, change, word):
    change(sd3)
    with pytest.raises(BadInput, match=word) as refusal:
        read_text_encoder(sd3)
    assert str(sd3) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_clips_of_different_lengths(sd3):
    config = sd3 / "text_encoder" / "config.json"
    shorter = transformers.CLIPTextConfig.from_dict(json.loads(config.read_text()) | {"max_position_embeddings": 9})
    replace_part(sd3, "text_encoder", transformers.CLIPTextModelWithProjection(shorter))
    with pytest.raises(BadInput, match="text_encoder_2: texts of another length"):
        read_text_encoder(sd3)


def test_prompts_are_checked(sd3):
    with pytest.raises(BadInput, match="prompts: got a str"):
        read_text_encoder(sd3)("a cat")
