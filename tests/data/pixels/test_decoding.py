"""From a latent model's samples to pictures through a VAE in diffusers' layout."""

import jax
import numpy as np
import pytest

from graftax.data.pixels import decoding
from graftax.errors import BadInput
from graftax.nets import vae
from graftax.nets.vae_files import load_vae
from graftax.testing import tiny_spec


def write_vae(folder):
    """A small VAE as diffusers has it on disk; returns it as we read it."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    theirs = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, mid_block_add_attention=False, **blocks)
    theirs.save_pretrained(folder)
    return load_vae(folder)


def test_the_vae_of_a_folder_decodes(tmp_path):
    """Pictures are the decoded latents, cut to [-1, 1]."""
    spec, params = write_vae(tmp_path / "vae")
    decode = decoding.decoder_for(tiny_spec(depth=1, input_size=4), str(tmp_path / "vae"))
    assert decode is not None
    latents = np.random.default_rng(0).standard_normal((4, 4, 4, 4), np.float32)
    expected = np.clip(jax.jit(vae.decode, static_argnums=0)(spec, params, latents), -1, 1)
    assert expected.shape == (4, 8, 8, 3)
    np.testing.assert_allclose(decode(latents), expected, rtol=1e-5, atol=1e-6)


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
    np.testing.assert_allclose(decoding.decode_all(spec, params, latents[4:]), found[4:], rtol=1e-5, atol=1e-6)
    assert not capsys.readouterr().err, "one call needs none"


def test_large_images_are_decoded_in_tiles(tmp_path, monkeypatch):
    spec, params = write_vae(tmp_path / "vae")
    latents = np.random.default_rng(0).standard_normal((2, 12, 12, 4)).astype(np.float32)
    seen = []
    monkeypatch.setattr(decoding, "WHOLE_UP_TO", 8)
    monkeypatch.setattr(vae, "decode_tiled", lambda *args: seen.append(args[2].shape) or np.full((1, 24, 24, 3), 2.0))
    assert decoding.decode_all(spec, params, latents).max() == 1, "cut to pixels"
    assert seen == [(1, 12, 12, 4)] * 2, "one image at a time"


def test_a_vae_of_other_channels_is_refused(tmp_path):
    write_vae(tmp_path / "vae")
    with pytest.raises(BadInput, match="the VAE has 4 channels, the model 2"):
        decoding.decoder_for(tiny_spec(depth=1, in_channels=2), str(tmp_path / "vae"))
