"""From a latent model's samples to pictures through a VAE in diffusers' layout."""

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from graftax.checkpoint import save_model
from graftax.checkpoint.vae import load_vae
from graftax.cli.pixels import decoding
from graftax.evaluate.pictures import grid
from graftax.models import vae
from graftax.testing import random_params, tiny_spec

SAMPLE = ("--labels", "0,1", "--per-class", "2", "--steps", "2", "--batch-size", "4")


def write_vae(folder):
    """A small VAE as diffusers has it on disk; returns it as we read it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    theirs = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, mid_block_add_attention=False, **blocks)
    theirs.save_pretrained(folder)
    return load_vae(folder)


@pytest.fixture
def model(tmp_path):
    spec = tiny_spec(depth=1, input_size=4)
    save_model(tmp_path / "model", spec, random_params(spec, jax.random.key(0)), {"source": "test"})
    return tmp_path / "model"


def test_sample_decodes_with_a_vae(run, model, tmp_path):
    """The picture is the decoded latents, in the reference's rounding."""
    spec, params = write_vae(tmp_path / "vae")
    for name, out in [(tmp_path / "vae", "a.png"), ("auto", "a.npz")]:
        code, _, err = run("sample", model, *SAMPLE, "--latents", name, "--out", tmp_path / out)
        assert code == 0, err
    with np.load(tmp_path / "a.npz") as drawn:
        decoded = np.asarray(jax.jit(vae.decode, static_argnums=0)(spec, params, drawn["latents"]))
    expected = grid(np.clip(127.5 * decoded + 128, 0, 255).astype(np.uint8), columns=2)
    found = np.asarray(Image.open(tmp_path / "a.png"))
    assert found.shape == expected.shape == (18, 18, 3)
    assert (found == expected).mean() > 0.99, "but for pixels within an ulp of the next number"


def test_a_pipeline_brings_its_vae(tmp_path):
    """Without --latents, a model's own pipeline is looked into; one that has none, and is not the demo's, has no decoder."""
    write_vae(tmp_path / "pipeline" / "vae")
    spec = tiny_spec(depth=1, input_size=4)
    assert decoding.resolve(spec, "auto", str(tmp_path / "pipeline")) == str(tmp_path / "pipeline" / "vae")
    assert decoding.decoder_for(spec, "auto", str(tmp_path / "pipeline")) is not None
    assert decoding.decoder_for(spec, "auto", str(tmp_path)) is None


def test_many_images_go_a_few_at_a_time_and_show_it(tmp_path, monkeypatch, capsys):
    spec, params = write_vae(tmp_path / "vae")
    latents = np.random.default_rng(0).standard_normal((5, 4, 4, 4)).astype(np.float32)
    monkeypatch.setattr(decoding, "PER_CALL", 2)
    found = decoding.decode_all(spec, params, latents)
    assert "decode 5/5" in capsys.readouterr().err
    np.testing.assert_array_equal(decoding.decode_all(spec, params, latents[4:].repeat(2, axis=0))[1:], found[4:])
    assert not capsys.readouterr().err, "one call needs none"


def test_large_images_are_decoded_in_tiles(tmp_path, monkeypatch):
    spec, params = write_vae(tmp_path / "vae")
    latents = np.random.default_rng(0).standard_normal((2, 12, 12, 4)).astype(np.float32)
    seen = []
    monkeypatch.setattr(decoding, "WHOLE_UP_TO", 8)
    monkeypatch.setattr(vae, "decode_tiled", lambda *args: seen.append(args[2].shape) or np.full((1, 24, 24, 3), 2.0))
    assert decoding.decode_all(spec, params, latents).max() == 1, "cut to pixels"
    assert seen == [(1, 12, 12, 4)] * 2, "one image at a time"


def test_a_vae_of_other_channels_is_refused(refused, model, tmp_path):
    write_vae(tmp_path / "vae")
    spec = tiny_spec(depth=1, in_channels=2)
    save_model(tmp_path / "two", spec, random_params(spec, jax.random.key(0)), {"source": "test"})
    line = refused("sample", tmp_path / "two", "--latents", tmp_path / "vae", "--out", tmp_path / "a.png")
    assert "the VAE has 4 channels, the model 2" in line
    assert not (tmp_path / "a.png").exists()
