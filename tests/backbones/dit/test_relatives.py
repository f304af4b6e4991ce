"""SiT, REPA, SRA, REG, ReDi and TREAD: what their files hold, what the networks compute, and the way back."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.backbones.dit import BACKBONE, joined, parted
from graftax.backbones.dit.relatives.variants import RELATIVES, VARIANTS, relative
from graftax.backbones.dit.relatives.zoo import ZOO, check_published
from graftax.backbones.dit.variants import dit_spec
from graftax.backbones.zoo import find
from graftax.checkpoint import read_beside
from graftax.checkpoint.tensors import read_tensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.diffusion import Sampling
from graftax.diffusion.guidance import guided
from graftax.draw import sampler_steps
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.cost import count_params, flops
from graftax.models.forward import prepare_params
from graftax.pages.describe import describe
from graftax.spec import Prediction

FOLDER = Path(__file__).parents[2] / "goldens" / "modern"
HEADS = {"sit": 4, "repa": 4, "repa_legacy": 2, "sra": 2, "reg": 2, "redi": 2, "tread": 4}
TOLD = {"sit": "sit", "redi": "redi"}
"""Those whose layout the tensors do not tell."""

BESIDE = {"repa": 12, "repa_legacy": 6, "sra": 4, "reg": 6}
TOLERANCE = 2e-6


@functools.cache
def opened(name):
    model = graftax.load(FOLDER / f"{name}.pt", layout=TOLD.get(name), num_heads=HEADS[name])
    with np.load(FOLDER / f"{name}.npz") as file:
        return model, dict(file)


def last(array):
    """Channels last."""
    return np.moveaxis(array, 1, -1)


def close(ours, expected):
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_sit():
    model, golden = opened("sit")
    assert model.spec.prediction == Prediction("velocity", "data", variance=True)
    out, taps = model.apply(last(golden["x"]), golden["t"], golden["y"], capture="block/out")
    close(out, last(golden["out"]))  # without the channels that nobody uses
    for i in range(4):
        close(taps["block/out"][i], golden[f"block_{i}"])


def test_repa():
    model, golden = opened("repa")
    assert model.spec.prediction == Prediction("velocity", "noise", variance=False)
    out, taps = model.apply(last(golden["x"]), golden["t"], golden["y"], capture="block/out")
    close(out, last(golden["out"]))
    heads, tapped = read_beside(FOLDER / "repa.pt"), taps["block/out"][int(golden["encoder_depth"]) - 1]
    for i in range(2):
        found = tapped
        for layer in (0, 2, 4):
            found = found @ heads[f"projectors.{i}.{layer}.weight"].T + heads[f"projectors.{i}.{layer}.bias"]
            found = found if layer == 4 else jax.nn.silu(found)
        close(found, golden[f"proj_{i}"])


def test_repa_of_the_first_release():
    """Norms of queries and keys; the number of the blocks behind the aligned one begins anew."""
    model, golden = opened("repa_legacy")
    assert {block["mixer"].option("qk_norm") for block in model.spec.blocks} == {"layer_affine"}
    close(model(last(golden["x"]), golden["t"], golden["y"]), last(golden["out"]))


def test_sra():
    model, golden = opened("sra")
    out, taps = model.apply(last(golden["x"]), golden["t"], golden["y_fwd"], capture="block/out")
    close(out, last(golden["teacher_out"]))  # the file's "ema" is the teacher
    close(taps["block/out"][int(golden["block_out_t"]) - 1], golden["teacher_feat"])


def test_redi():
    model, golden = opened("redi")
    assert (model.spec.option("channels"), model.spec.latent_channels) == (7, 4)
    close(model(last(golden["x"]), golden["t"], golden["y"]), last(golden["out"]))


def test_reg():
    model, golden = opened("reg")
    x = joined(model.spec, last(golden["x"]), golden["cls"])
    assert x.shape == (3, 8, 8, 5)
    out, taps = model.apply(x, golden["t"], golden["y"], capture="block/out")
    latents, vector = parted(model.spec, out)
    close(latents, last(golden["out"]))
    close(vector, golden["cls_out"])
    assert np.all(np.asarray(out)[..., 4].reshape(3, -1)[:, 12:] == 0)
    assert {name: tap.shape for name, tap in taps["block/out"].items()} == {"txt": (3, 3, 1, 24), "img": (3, 3, 16, 24)}


@pytest.mark.parametrize(
    ("scale", "of_token", "high"),
    [
        (2.3, 2.3, 0.85),
        pytest.param(2.3, 0.0, 0.85, marks=pytest.mark.slow),
        pytest.param(1.0, 0.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_reg_is_drawn_as_one_array(scale, of_token, high):
    """Latents and class token walk together; the token is guided like the latents, or not at all."""
    model, golden = opened("reg")
    noise = [joined(model.spec, last(golden["z"]), golden["cls_z"])]
    steps = zip(golden["step_noise"], golden["cls_step_noise"], strict=True)
    noise += [joined(model.spec, last(latents), vector) for latents, vector in steps]
    found = graftax.sample(
        model, golden["y_sample"], sampler="euler_maruyama", steps=len(noise), diffusion="linear", cfg_scale=scale,
        cfg_channels=None if of_token else model.spec.latent_channels, interval=(0.0, high / (1 - high or 1e-9)),
        initial_noise=noise[0], step_noise=np.stack([*noise[1:], 0 * noise[0]]),
    )  # fmt: skip
    for part, name in zip(parted(model.spec, found), ("", ".cls"), strict=True):
        expected = golden[f"em.cfg{scale}.clscfg{of_token}.hi{high}{name}"]
        expected = last(expected) if expected.ndim == 4 else expected
        assert np.abs(part - expected).max() <= 1e-5 * np.abs(expected).max()


def test_redi_is_drawn_with_guidance_of_the_latents():
    model, golden = opened("redi")
    found = graftax.sample(
        model, golden["cfg_y"], initial_noise=last(golden["z"]), sampler="euler", steps=8, cfg_scale=2.4
    )  # fmt: skip
    expected = last(golden["ode_euler_9_cfgvae_2p4"])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "key", "scale", "channels"),
    [("sit", "out_cfg", 1.5, 3), ("redi", "out_cfg_all_1p5", 1.5, None), ("redi", "out_cfg_latent_only_2p4", 2.4, 4)],
)
def test_guidance_is_the_authors(name, key, scale, channels):
    """On the first 3 channels of SiT, on all of ReDi or its latents; their batches hold the null pass behind the images."""
    model, golden = opened(name)
    half = len(golden[key]) // 2
    x, t, y = last(golden["cfg_x"])[:half], np.broadcast_to(golden["cfg_t"], 2 * half)[:half], golden["cfg_y"][:half]
    guide = guided(lambda x, t, y: model(x, t, y), scale, lambda y: np.full_like(y, model.spec.classes), channels)
    close(guide(x, t.astype(np.float32), y), last(golden[key])[:half])


def test_representation_guidance_is_the_authors():
    """Away from the same network under the same conditions that sees no features, on all channels."""
    model, golden = opened("redi")
    half = len(golden["out_rg_1p5"]) // 2
    how = Sampling(sampler="euler", steps=2, cfg_scale=1.5, cfg_channels=None, weak="representation")
    guide = sampler_steps(model.spec, prepare_params(model.spec, model.params), how).model_fn
    t = np.full(half, golden["cfg_t"], np.float32)
    velocity = guide(last(golden["cfg_x"])[:half], 1 - t, {"y": golden["cfg_y"][:half]})  # noise - data, by noise fraction
    close(-velocity, last(golden["out_rg_1p5"])[:half])


def test_representation_guidance_walks_and_is_refused_without_features():
    model, golden = opened("redi")
    noise, y = last(golden["z"]), golden["cfg_y"]
    found = graftax.sample(model, y, initial_noise=noise, steps=2, cfg_scale=1.5, cfg_channels=None, weak="representation")
    x, step = noise, 0.5
    for t in np.float32([0, 0.5]):
        full, blind = (np.asarray(model(seen, np.full(2, t), y)) for seen in (x, without_features(x)))
        x = x + step * (blind + 1.5 * (full - blind))
    assert np.abs(found - x).max() <= 1e-5 * np.abs(x).max()
    with pytest.raises(BadInput, match=r"^weak: got 'representation', of a model that denoises nothing beside its latents"):
        graftax.sample(opened("sit")[0], y, steps=2, weak="representation")


def without_features(x):
    """ReDi's images with zeros for their last 3 channels."""
    return np.concatenate([x[..., :4], np.zeros_like(x[..., 4:])], axis=-1)


def test_tread():
    model, golden = opened("tread")
    assert model.spec.prediction == Prediction("edm", "log_sigma", variance=False)
    y = np.where(golden["label_dropped"] == 1, model.spec.classes, golden["y"])
    close(model(last(golden["x"]), golden["t"], y), last(golden["out_plain"]))


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back_bit_for_bit(name, tmp_path):
    model, _ = opened(name)
    given, source = read_tensors(FOLDER / f"{name}.pt")
    beside = read_beside(FOLDER / f"{name}.pt", TOLD.get(name))
    assert len(beside) == BESIDE.get(name, 0)
    graftax.export(model, tmp_path / "model.pt")
    back, _ = read_tensors(tmp_path / "model.pt")
    encoder = 1  # blocks of the first release's
    counted = {key: re.sub(r"decoder_blocks\.(\d)", lambda m: f"blocks.{int(m[1]) + encoder}", key) for key in given}
    expected = {counted[key]: array for key, array in given.items()}
    assert back.keys() == expected.keys() - beside.keys()
    assert all(np.array_equal(back[key].view(np.int32), expected[key].view(np.int32)) for key in back)
    again = graftax.load(tmp_path / "model.pt", num_heads=HEADS[name])  # exported files know what they are
    assert again.spec == model.spec
    assert source.entry in ("", "ema")


def test_statistics_of_repa_e_stand_beside_the_model(tmp_path):
    given, _ = read_tensors(FOLDER / "repa.pt")
    bn = {f"bn.running_{name}": np.ones(4, np.float32) for name in ("mean", "var")}
    write_torch(tmp_path / "repae.pt", {**given, **bn}, key="ema")
    assert graftax.load(tmp_path / "repae.pt", num_heads=4).spec == opened("repa")[0].spec
    assert bn.keys() < read_beside(tmp_path / "repae.pt").keys()


def test_wrong_files_and_layouts_are_refused(tmp_path):
    given, _ = read_tensors(FOLDER / "repa.pt")
    head, _ = read_tensors(FOLDER / "sra.pt")
    mixed = {**given, "ap_head.linear1.weight": head["ap_head.linear1.weight"]}
    write_torch(tmp_path / "mixed.pt", mixed)
    with pytest.raises(BadInput, match=r"^[^\n]*unexpected: ap_head\.linear1\.weight[^\n]*$"):
        graftax.load(tmp_path / "mixed.pt", num_heads=4)
    with pytest.raises(BadInput, match="channels, expected more than the 4 of the latents"):
        graftax.load(FOLDER / "sit.pt", layout="redi", num_heads=4)
    with pytest.raises(BadInput, match=r"export to 'repa'.*time='data'.*expected.*time='noise'"):
        graftax.export(opened("sit")[0], tmp_path / "sit.pt", layout="repa")
    with pytest.raises(BadInput, match=r"export to 'sit'.* 3 channels of features, expected none"):
        graftax.export(opened("redi")[0].replace(spec=opened("redi")[0].spec.replace(
            prediction=Prediction("velocity", "data", variance=False))), tmp_path / "redi.pt", layout="sit")  # fmt: skip
    with pytest.raises(BadInput, match="features: got 2, expected 1"):
        BACKBONE.check(opened("reg")[0].spec.with_frame(features=2))


def test_a_published_sit_is_not_taken_for_a_dit(tmp_path):
    """Nothing but its name tells the file from a DiT's."""
    spec = relative("SiT-XL/2")
    as_dit = spec.replace(prediction=Prediction(variance=True))
    check_published(tmp_path / "SiT-XL-2-256.pt", spec)
    with pytest.raises(BadInput, match=r"named as a published SiT-XL/2.*give layout='sit'"):
        check_published(tmp_path / "SiT-XL-2-256.pt", as_dit)
    with pytest.raises(BadInput, match="named as a published ReDi-XL/2 of 675,184,944 parameters"):
        check_published(tmp_path / "SiT-ReDi-XL-2-3M.pt", spec)


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_parameters_are_exact(entry):
    """The list, the closed form, and the tree that would be allocated."""
    spec = entry.spec()
    tree = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
    assert entry.params == count_params(spec) == tree
    assert entry.flops == flops(spec)
    assert find(entry.name) is entry


def test_they_are_described():
    """What output and time mean, and what is denoised with the latents."""
    said = {"sit": "t from 0 (noise) to 1 (data)", "repa": "t from 0 (data) to 1 (noise)", "tread": "t = ln(sigma) / 4"}
    said |= {"redi": "3 channels of features, 10 classes", "reg": "a class token of 12 numbers, 10 classes"}
    for name, text in said.items():
        assert text in describe(opened(name)[0].spec, {})


def test_families_at_true_size():
    assert len(VARIANTS) == 4 * len(RELATIVES)
    xl = relative("REPA-XL/2")
    assert xl.replace(prediction=Prediction(variance=False)) == dit_spec(
        input_size=32, patch_size=2, hidden_size=1152, depth=28, num_heads=16, learn_sigma=False
    )
    # REG adds a class token in and out (1,773,696 in its paper's repository) and a row of positions
    assert count_params(relative("REG-XL/2")) - count_params(xl) == 1_773_696 + 1152
    assert relative("SRA-XL/2") == xl
    with pytest.raises(BadInput, match="SiT-XL/3"):
        relative("SiT-XL/3")
