"""VAEs with 16 channels and no convolutions around the latents, from diffusers' folder and from the authors' file."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import graftax
from graftax.backbones.lightningdit.variants import lightningdit_spec
from graftax.checkpoint.torch_writer import write_torch
from graftax.data.pixels.decoding import decoder_for, pixels_per_side
from graftax.data.pixels.encoding import open_encoder
from graftax.errors import BadInput
from graftax.evaluate.run import decoder_name
from graftax.models import Model
from graftax.nets import vae
from graftax.nets.vae_files import find_vae, load_vae, read_vae

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDER, FILE = (GOLDENS / "vae16" / name for name in ("diffusers", "original.safetensors"))
LIKE = dataclasses.replace(vae.FLUX, norm_num_groups=4)
"""What the authors' file does not say."""

UNTOLD = r"does not say how its latents are scaled, expected latents_stats\.pt beside it or a VAE's folder"


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


@pytest.fixture
def vavae(tmp_path):
    """A small VA-VAE twice: as its authors publish it, beside what it was trained with, and as diffusers writes it."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=(32, 32, 64), latent_channels=4, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "folder")
    own = {in_authors_names(name, 3): tensor for name, tensor in theirs.state_dict().items()}
    own = {name: x[:, :, None, None] if ATTENDING.search(name) and x.ndim == 2 else x for name, x in own.items()}
    beside = ("loss.discriminator.main.0.weight", "loss.logvar", "foundation_model.model.norm.weight", "linear_proj.weight")
    content = {"state_dict": {**own, **dict.fromkeys(beside, torch.ones(2))}, "epoch": 50}
    torch.save(content, tmp_path / "vavae.pt")
    return tmp_path / "vavae.pt", tmp_path / "folder"


ATTENDING = re.compile(r"attn(_1|\.\d)\.(q|k|v|proj_out)\.")


def in_authors_names(name, levels):
    """diffusers' name of a tensor as latent diffusion's code has it."""
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    for pattern, theirs in {
        r"mid_block\.attentions\.0": "mid.attn_1", r"mid_block\.resnets\.0": "mid.block_1",
        r"mid_block\.resnets\.1": "mid.block_2", "resnets": "block", "attentions": "attn",
        r"(down|up)samplers\.0": r"\1sample", "group_norm": "norm", r"to_out\.0": "proj_out", r"to_([qkv])": r"\1",
        "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
    }.items():  # fmt: skip
        name = re.sub(pattern, theirs, name)
    return name


def test_a_vavae_is_read_with_its_statistics(vavae):
    """What attends is told by names; nothing of losses and of the network that it was aligned with."""
    file, folder = vavae
    spec, params = load_vae(folder)
    assert (spec.down_attention, spec.up_attention) == ((2,), (2,))
    with pytest.raises(BadInput, match=rf"vavae.pt: {UNTOLD}"):
        load_vae(file, vae.VA_VAE)
    mean, std = np.array([1.0, -1, 0, 3]), np.array([0.5, 2, 4, 1])
    write_torch(file.with_name("latents_stats.pt"), {"mean": mean[None, :, None, None], "std": std[None, :, None, None]})
    for like in (None, vae.VA_VAE):
        found, own = load_vae(file, like)
        assert found == dataclasses.replace(spec, scaling_factor=tuple(1 / std), shift_factor=tuple(mean))
        assert jax.tree.all(jax.tree.map(np.array_equal, own, params))


@pytest.mark.slow
def test_a_vavae_decodes_and_encodes(vavae):
    """As `graftax sample --latents FILE` and `graftax encode --vae FILE` open it."""
    file, folder = vavae
    write_torch(file.with_name("latents_stats.pt"), {"mean": np.ones(4), "std": np.full(4, 2.0)})
    model = lightningdit_spec(input_size=2, patch_size=1, hidden_size=8, depth=1, num_heads=1, in_channels=4)
    assert pixels_per_side(model, str(file)) == 4
    latents = np.random.default_rng(0).standard_normal((1, 2, 2, 4)).astype(np.float32)
    decode = decoder_for(model, str(file))
    assert decode is not None
    spec, params = load_vae(folder)
    raw = dataclasses.replace(spec, scaling_factor=1.0)
    pixels = np.clip(vae.decode(raw, params, latents * 2 + 1), -1, 1)
    np.testing.assert_allclose(decode(latents), pixels, rtol=0, atol=2e-5)
    encoder = open_encoder(str(file), 8)
    assert (encoder.latent_shape, encoder.scale, encoder.shift) == ((2, 2, 4), (0.5,) * 4, (1.0,) * 4)
    assert "latents_stats.pt" in decoder_name(Model(model, {}), str(file), "")


def test_what_is_refused(tmp_path):
    for like in (None, dataclasses.replace(vae.VA_VAE, norm_num_groups=4), dataclasses.replace(vae.SD, norm_num_groups=4)):
        with pytest.raises(BadInput, match=UNTOLD):
            read_vae(FILE, like)
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
