"""Pipelines of SD3, Flux and AuraFlow from prompts to pictures, as diffusers runs them from the same noise."""

import jax
import numpy as np
import pytest
import tiny_diffusers as tiny
from PIL import Image

from graftax.diffusion import image_keys, initial_noise
from graftax.evaluate import drawing
from graftax.evaluate.pictures import to_uint8

torch = tiny.torch
PROMPTS = ["a red cat!", "Two cats"]
SIZE, SHAPE = (16, 24), (8, 12)
"""Height and width in pixels, and in latents."""
TOLERANCE = 1e-3
"""Relative to the largest latent; AuraFlow's times round as diffusers'."""


def sd3():
    return tiny.stable_diffusion_3(vae=tiny.vae())


def schnell():
    return tiny.flux(False, transformer=tiny.flux_transformer(False), vae=tiny.vae())


def dev():
    return tiny.flux(True, transformer=tiny.flux_transformer(True), vae=tiny.vae())


def aura():
    like_sdxl = {"use_quant_conv": True, "use_post_quant_conv": True, "scaling_factor": 0.13025, "shift_factor": None}
    return tiny.aura_flow(transformer=tiny.aura_transformer(), vae=tiny.vae(4, **like_sdxl))


CASES = {
    "sd3": (sd3, {"negative": "a dog"}, {"negative_prompt": "a dog", "guidance_scale": 7.0}),
    "schnell": (schnell, {}, {"guidance_scale": 0.0, "max_sequence_length": 256}),
    "dev": (dev, {"guidance": 2.5}, {"guidance_scale": 2.5, "max_sequence_length": 512}),
    "aura": (aura, {}, {"guidance_scale": 3.5}),
}
"""Pipelines, what we are told of how they draw, and what diffusers is."""


def theirs(pipeline, noise, settings):
    """Latents (b, h, w, c) and pictures (b, h, w, 3) in 0..1 of diffusers' pipeline."""
    (height, width), latents = SIZE, torch.tensor(noise.transpose(0, 3, 1, 2))
    is_flux = isinstance(pipeline, tiny.diffusers.FluxPipeline)
    if is_flux:
        latents = pipeline._pack_latents(latents, *latents.shape)
    pipeline.set_progress_bar_config(disable=True)

    def run(kind):
        asked = {"height": height, "width": width, "num_inference_steps": 3, "latents": latents.clone(), **settings}
        with torch.no_grad():
            return pipeline(PROMPTS, output_type=kind, **asked).images

    found = run("latent")
    if is_flux:
        found = pipeline._unpack_latents(found, height, width, pipeline.vae_scale_factor)
    return found.numpy().transpose(0, 2, 3, 1), run("np")


@pytest.fixture
def seen(monkeypatch):
    """The latents that the command draws, and its pictures."""
    found = []

    def write(path, drawn, decode, *args, write=drawing.write, **said):
        found.append((drawn, to_uint8(decode(drawn))))
        write(path, drawn, decode, *args, **said)

    monkeypatch.setattr(drawing, "write", write)
    return found


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "dev", "aura")]


@pytest.mark.parametrize("case", ["schnell", *SLOW])
def test_as_diffusers_from_prompts_to_pictures(run, seen, case, tmp_path):
    """As they are drawn unless told otherwise, but for the number of steps."""
    make, told, settings = CASES[case]
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "pipeline")
    argv = ["--steps=3", "--seed=3", "--batch-size=2", *(f"--{name}={value}" for name, value in told.items())]
    argv += [text for prompt in PROMPTS for text in ("--prompt", prompt)]
    code, out, err = run("sample", tmp_path / "pipeline", *argv, "--size", *SIZE, "--out", tmp_path / "x.png")
    assert (code, "2 images, Euler, 3 steps" in out) == (0, True), err
    assert Image.open(tmp_path / "x.png").size[0] >= 2 * SIZE[1]
    ((drawn, pixels),) = seen
    shape = (*SHAPE, pipeline.vae.config.latent_channels)
    noise = np.asarray(initial_noise(image_keys(jax.random.key(3), 0, 2), 3, shape))
    latents, pictures = theirs(pipeline, noise, settings)
    assert np.abs(drawn - latents).max() < TOLERANCE * np.abs(latents).max()
    assert np.abs(pixels - 255 * pictures).max() < 2
    assert pixels.std() > 10
