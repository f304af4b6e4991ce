"""Text-to-image pipelines: PixArt-Sigma's as diffusers computes it, from prompts to latents and pictures."""

import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_pipeline import SCALING, T5, write_pipeline

from graftax import api
from graftax.diffusion import image_keys, initial_noise
from graftax.evaluate.drawing import SampleConfig, draw_with
from graftax.evaluate.pictures import to_uint8
from graftax.nets.vae_files import read_vae
from graftax.study.text_to_image import open_pipeline

GOLDEN = Path(__file__).parents[1] / "goldens" / "pixart" / "sigma"
TOLERANCE = 1e-4
"""Relative to the largest latent; those of a random network grow to 1,000."""


class Embedded:
    """A text encoder that has the golden's embeddings: "text 0" is a prompt, "neg 0" what it is guided away from."""

    sha256 = "0" * 64

    def __init__(self, golden):
        self.golden = golden

    def __call__(self, prompts):
        rows = [(kind, int(number)) for kind, number in map(str.split, prompts)]
        text = [self.golden["text" if kind == "text" else "neg_text"][i] for kind, i in rows]
        mask = [self.golden["text_mask" if kind == "text" else "neg_mask"][i] for kind, i in rows]
        return {"text": np.stack(text), "text_mask": np.stack(mask)}


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_the_goldens_latents(tmp_path, monkeypatch):
    """diffusers' pipeline of six steps from embeddings and noise, through what the verbs call; each picture has a negative
    prompt of its own."""
    golden = dict(np.load(GOLDEN / "pipeline.npz"))
    shutil.copytree(GOLDEN / "diffusers", tmp_path / "transformer")
    monkeypatch.setattr(api, "text_encoder", lambda folder, **settings: Embedded(golden))
    for i in range(2):
        noise = golden["latents"].transpose(0, 2, 3, 1)[i : i + 1]
        monkeypatch.setattr("graftax.evaluate.drawing.initial_noise", lambda *_, noise=noise: noise)
        pipeline = open_pipeline(str(tmp_path), [f"text {i}"], text_encoder=str(T5), negative=f"neg {i}")
        config = SampleConfig.of(pipeline.model.spec, steps=6)
        drawn = draw_with(pipeline.model, pipeline.conditions([f"text {i}"]), config, null=pipeline.null(), show=False)
        assert relative(drawn[0], golden["out"][i].transpose(1, 2, 0)) < TOLERANCE


@functools.cache
def theirs(root):
    """diffusers' own pipeline of a folder."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    words = PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer" / "tokenizer.json"), pad_token="<pad>")
    return PixArtSigmaPipeline(
        words, T5EncoderModel.from_pretrained(root / "text_encoder"), AutoencoderKL.from_pretrained(root / "vae"),
        PixArtTransformer2DModel.from_pretrained(root / "transformer"), DPMSolverMultistepScheduler(),
    )  # fmt: skip


@pytest.mark.slow
def test_as_diffusers_from_prompts_to_pictures(tmp_path):
    torch = pytest.importorskip("torch")
    root = write_pipeline(tmp_path / "pipeline")
    assert read_vae(root)[0].scaling_factor == SCALING
    prompts = ["A red cat", "two cats"]
    ours = open_pipeline(str(root), prompts, negative="a dog")
    config = SampleConfig.of(ours.model.spec, steps=6, seed=3)
    drawn = draw_with(ours.model, ours.conditions(prompts), config, null=ours.null(), show=False)
    noise = np.asarray(initial_noise(image_keys(jax.random.key(3), 0, 2), 6, (8, 8, 4))).transpose(0, 3, 1, 2)
    asked = {"num_inference_steps": 6, "guidance_scale": 4.5, "clean_caption": False, "use_resolution_binning": False}
    size = {"height": 16, "width": 16, "negative_prompt": "a dog"}
    run = functools.partial(theirs(root), prompts, latents=torch.tensor(noise), **asked, **size)
    latents = run(output_type="latent").images.numpy().transpose(0, 2, 3, 1)
    assert relative(drawn, latents) < TOLERANCE
    pictures = run(output_type="np").images  # in 0..1
    assert np.abs(to_uint8(ours.decode(drawn)).astype(float) - 255 * pictures).max() < 1.5
