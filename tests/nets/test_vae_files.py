"""VAEs from diffusers folders: the numbers of diffusers' AutoencoderKL itself, on random weights."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from graftax.checkpoint.files import sha256
from graftax.checkpoint.torch_writer import write_torch
from graftax.errors import BadInput
from graftax.nets import vae
from graftax.nets.vae_files import block_types, load_vae, read_vae

SAMPLING = Path(__file__).parents[1] / "goldens" / "lightningdit" / "sampling.npz"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SIXTEEN = {
    "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "mid_block_add_attention": False,
}  # fmt: skip
ATTENDED = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 0.5, 4.0], "scaling_factor": 0.5,
}  # fmt: skip
"""As VA-VAE at the lowest resolution; beside it the encoder alone. Statistics as Playground 2.5 has them."""
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3)).astype(np.float32)


def build(**changes):
    """A small AutoencoderKL: channels that change and channels that stay, variance kept by each layer, no norm at one."""
    from diffusers import AutoencoderKL  # takes seconds, and every process collects this file

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    sizes = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    model = AutoencoderKL(**{**sizes, **blocks, **changes}).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights.add_(0.2 * torch.randn_like(weights))
            else:
                weights.normal_(std=weights[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def theirs():
    return build()


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def set_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


def set_weights(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def equal(found, expected):
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize(
    "changes", [{}, ATTENDED, pytest.param(SIXTEEN, marks=pytest.mark.slow)], ids=["sd", "va-vae", "sd3, no attention"]
)
def test_both_ways_as_diffusers(tmp_path, changes):
    theirs = build(**changes)
    theirs.save_pretrained(tmp_path)
    spec, params = load_vae(tmp_path)
    scale, shift = changes.get("scaling_factor", 0.18215), np.asarray(changes.get("shift_factor", 0.0))
    if "latents_mean" in changes:
        scale, shift = scale / np.asarray(changes["latents_std"]), np.asarray(changes["latents_mean"])
    np.testing.assert_array_equal(spec.scaling_factor, scale)
    np.testing.assert_array_equal(spec.shift_factor, shift)
    assert block_types(spec) == {name: list(theirs.config[name]) for name in ("down_block_types", "up_block_types")}
    latents = np.random.default_rng(1).standard_normal((2, 6, 4, spec.latent_channels)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(IMAGES).permute(0, 3, 1, 2)).latent_dist
        expected = torch.cat([posterior.mean, posterior.logvar], 1).permute(0, 2, 3, 1).numpy()
        raw = torch.tensor((latents / scale + shift).astype(np.float32)).permute(0, 3, 1, 2)  # as their pipelines do
        pixels = theirs.decode(raw).sample.permute(0, 2, 3, 1).numpy()
    moments = jax.jit(vae.encode_moments, static_argnums=0)(spec, params, IMAGES)
    decoded = jax.jit(vae.decode, static_argnums=0)(spec, params, latents)
    for found, wanted in [(moments, expected), (decoded, pixels)]:
        assert 0.5 < wanted.std() < 5, "a scale on which an error of 1e-4 says something"
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)  # float32 over 30 layers; required 1e-4


def test_old_names_of_attention_and_1x1_convolutions(theirs, folder, tmp_path):
    def renamed(name):
        for new, old in OLD.items():
            name = name.replace(new, old)
        return name

    _, expected = load_vae(folder)
    set_weights(folder, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})
    assert any("proj_attn" in name for name in load_file(folder / WEIGHTS))
    equal(load_vae(folder)[1], expected)
    set_weights(
        folder,
        lambda tensors: {
            name: tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        },
    )
    equal(load_vae(folder)[1], expected)


def test_a_config_without_scale_is_stable_diffusions(folder):
    """sd-vae-ft-ema's says neither scale nor which convolutions there are."""
    spec, _ = load_vae(folder)
    absent = ("scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    set_config(folder, **dict.fromkeys((*absent, "latents_mean", "latents_std"), "absent"))
    assert load_vae(folder)[0] == spec


def test_statistics_beside_a_config_scale_each_channel(folder):
    """As LightningDiT's code undoes its normalisation, on what it drew; latents go in as models see them."""
    with np.load(SAMPLING) as file:
        mean, std, expected = (file[name] for name in ("latent_mean", "latent_std", "denormalised_example"))
        drawn = np.moveaxis(file["sample.shift0.3.cfg6.7.interval1.start0.11"], 1, -1)
    write_torch(folder / "latents_stats.pt", {"mean": mean[:, :4], "std": std[:, :4]})  # (1, c, 1, 1)
    spec, params = load_vae(folder)
    assert vae.VAESpec.from_json(spec.to_json()) == spec
    raw = vae.raw_latents(spec, jnp.asarray(drawn[..., :4]))
    np.testing.assert_allclose(raw, np.moveaxis(expected, 1, -1)[..., :4], rtol=0, atol=1e-6 * np.abs(expected).max())
    moments = jnp.concatenate([raw, jnp.zeros_like(raw)], axis=-1)
    np.testing.assert_allclose(vae.sample_latents(spec, moments, None), drawn[..., :4], atol=1e-5)
    plain = dataclasses.replace(spec, scaling_factor=1.0, shift_factor=0.0)
    pixels = vae.decode(plain, params, raw[:1, :2, :2])
    np.testing.assert_allclose(vae.decode(spec, params, jnp.asarray(drawn[:1, :2, :2, :4])), pixels, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": np.zeros(3)}, r"latents_stats.pt: mean is .* expected 4 finite numbers, one for each channel"),
        ({"std": np.array([1.0, 1, 0, 1])}, "std is .* expected 4 finite numbers, positive"),
        ({"mean": np.full(4, np.nan)}, "mean is .* expected 4 finite numbers"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(folder, changes, words):
    write_torch(folder / "latents_stats.pt", {"mean": np.zeros(4), "std": np.ones(4), **changes})
    with pytest.raises(BadInput, match=words):
        load_vae(folder)
    write_torch(folder / "latents_stats.pt", {"std": np.ones(4)})
    with pytest.raises(BadInput, match="mean is 'None'"):
        load_vae(folder)


def test_bin_files_pipelines_and_half_precision(theirs, folder, tmp_path):
    spec, params = load_vae(folder)
    torch.save(theirs.state_dict(), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    found_spec, found, source = read_vae(tmp_path)  # the pipeline that has the folder "vae"
    assert found_spec == spec
    equal(found, params)
    assert source.sha256 == sha256(folder / "diffusion_pytorch_model.bin")
    torch.save({name: tensor.bfloat16() for name, tensor in theirs.state_dict().items()}, folder / source.name)
    _, half = load_vae(folder)
    equal(half, jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf, jnp.bfloat16), np.float32), params))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"act_fn": "relu"}, "act_fn: '?relu"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "missing for encoder/down_blocks_0_attentions_0/"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types: .* expected 3 of"),
        ({"latents_mean": [0.1] * 4}, "latents_std is 'None', expected 4 finite numbers, positive"),
        ({"latents_mean": ["a"] * 4, "latents_std": [0.1] * 4}, "latents_mean is .*, expected 4 finite numbers"),
        ({"latents_mean": [0.1] * 4, "latents_std": [0.1] * 4, "shift_factor": 1.0}, "shift_factor: 1.0 beside latents_"),
        ({"block_out_channels": [16, 32, 50]}, "block_out_channels"),
        ({"block_out_channels": 16}, "block_out_channels: '?16"),
        ({"norm_num_groups": 0}, "norm_num_groups: got 0"),
        ({"scaling_factor": "0.18"}, "scaling_factor: got '0.18'"),
        ({"shift_factor": [1]}, "shift_factor"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"latent_channels": 8}, "conv_"),
        ({"use_quant_conv": False}, "quant_conv"),
    ],
)
def test_other_configs_are_refused(folder, changes, word):
    set_config(folder, **changes)
    with pytest.raises(BadInput, match=word) as refusal:
        load_vae(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: {name: x for name, x in t.items() if name != "decoder.conv_in.bias"}, "missing for decoder/conv_in/bias"),
        (lambda t: {**t, "encoder.extra.weight": torch.zeros(2)}, "encoder.extra.weight'?: unexpected"),
        (lambda t: {**t, "bare": torch.zeros(2)}, "bare'?: unexpected"),
        (lambda t: {**t, "decoder.conv_in.bias": torch.zeros(3)}, "decoder.conv_in.bias: shape"),
        (lambda t: {**t, "decoder.conv_in.weight": torch.zeros(3)}, "decoder.conv_in.weight: shape"),
        (lambda t: {**t, "decoder.conv_in.bias": torch.zeros(32, dtype=torch.int64)}, "decoder.conv_in.bias: int64"),
        (lambda t: {**t, "decoder.mid_block.attentions.0.query.bias": torch.zeros(32)}, "to_q.bias'?: unexpected"),
    ],
)
def test_other_tensors_are_refused(folder, change, word):
    set_weights(folder, change)
    with pytest.raises(BadInput, match=word) as refusal:
        load_vae(folder)
    assert WEIGHTS in str(refusal.value)


def test_folders_that_are_none(tmp_path, folder):
    with pytest.raises(BadInput, match=r"no VAE.*config.json"):
        load_vae(tmp_path / "nowhere")
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadInput, match="no weights"):
        load_vae(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(BadInput, match="not the config"):
        load_vae(folder)
