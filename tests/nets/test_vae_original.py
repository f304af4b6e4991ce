"""VAEs with 16 channels and no convolutions around the latents, from diffusers' folder and from the authors' file."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.data.pixels.decoding import decoder_for, pixels_per_side
from graftax.errors import BadInput
from graftax.nets import vae
from graftax.nets.vae_files import find_vae, load_vae, read_vae

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDER, FILE = (GOLDENS / "vae16" / name for name in ("diffusers", "original.safetensors"))
LIKE = dataclasses.replace(vae.FLUX, norm_num_groups=4)
"""What the authors' file does not say."""


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("path", "like"), [(FOLDER, None), (FILE, LIKE)], ids=["diffusers", "original"])
def test_both_ways(path, like):
    golden = dict(np.load(GOLDENS / "vae16" / "io.npz"))
    spec, params = load_vae(path, like)
    moments = jax.jit(vae.encode_moments, static_argnums=0)(spec, params, nhwc(golden["image"]))
    expected = np.concatenate([nhwc(golden["mean"]), nhwc(golden["logvar"])], -1)
    np.testing.assert_allclose(moments, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(vae.sample_latents(spec, moments, None), nhwc(golden["latent_from_mean"]), rtol=0, atol=2e-5)
    decoded = jax.jit(vae.decode, static_argnums=0)(spec, params, nhwc(golden["latent"]))
    np.testing.assert_allclose(decoded, nhwc(golden["decoded"]), rtol=0, atol=2e-5)


def test_the_file_is_the_folder(tmp_path):
    """Also in one file with other networks; with convolutions around the latents, as older VAEs have them."""
    spec, params = load_vae(FOLDER)
    assert load_vae(FILE, LIKE)[0] == spec
    tensors = load_file(FILE)
    whole = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    save_file({**whole, "model.diffusion_model.x": np.zeros(3)}, tmp_path / "whole.safetensors")
    found = load_vae(tmp_path / "whole.safetensors", LIKE)[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
    around = {f"{name}.{leaf}": np.zeros((c, c, 1, 1) if leaf == "weight" else c, np.float32)
              for name, c in (("quant_conv", 32), ("post_quant_conv", 16)) for leaf in ("weight", "bias")}  # fmt: skip
    save_file({**tensors, **around}, tmp_path / "old.safetensors")
    old, old_params = load_vae(tmp_path / "old.safetensors", LIKE)
    assert (old.use_quant_conv, old.use_post_quant_conv) == (True, True)
    assert {"quant_conv", "post_quant_conv"} == old_params.keys() - params.keys()


def test_where_it_is_found(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "vae")
    assert find_vae(tmp_path) == tmp_path / "vae"
    assert find_vae(FILE) == FILE
    assert find_vae(GOLDENS / "flux" / "schnell") is None
    flux = graftax.load(GOLDENS / "flux" / "schnell" / "diffusers").spec
    assert pixels_per_side(flux, str(tmp_path)) == 4
    (tmp_path / "model_index.json").write_text("{}")
    pictures = decoder_for(flux, "auto", str(tmp_path))(np.zeros((1, 2, 4, 16), np.float32))
    assert pictures.shape == (1, 8, 16, 3)


def test_a_file_is_scaled_as_its_models_family(tmp_path, monkeypatch):
    monkeypatch.setitem(vae.FAMILIES, "flux", LIKE)
    flux = graftax.load(GOLDENS / "flux" / "schnell" / "diffusers").spec
    latents = np.random.default_rng(0).standard_normal((1, 2, 2, 16)).astype(np.float32)
    expected = decoder_for(flux, str(FOLDER))(latents)
    np.testing.assert_array_equal(decoder_for(flux, str(FILE))(latents), expected)
    assert pixels_per_side(flux, str(FILE)) == 4


def test_what_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not say how its latents are scaled, expected a VAE's folder"):
        read_vae(FILE)
    with pytest.raises(BadInput, match=r"multiples of norm_num_groups 32"):
        read_vae(FILE, vae.FLUX)
    with pytest.raises(BadInput, match=r"encoder.down.0.block.0.conv1.weight: missing .* names"):
        read_vae(GOLDENS / "flux" / "schnell" / "original.safetensors", LIKE)
    tensors = load_file(FILE)
    save_file({**tensors, "decoder.more": np.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(BadInput, match=r"more.safetensors: tensor 'decoder.more': unexpected"):
        read_vae(tmp_path / "more.safetensors", LIKE)
    save_file({k: v for k, v in tensors.items() if "decoder.up.2.block.1.norm2" not in k}, tmp_path / "less.safetensors")
    with pytest.raises(BadInput, match=r"tensors missing for decoder/up_blocks_0_resnets_1/norm2/bias"):
        read_vae(tmp_path / "less.safetensors", LIKE)
