"""MaskDiT: its file, what it computes of all tokens and of some, its loss, the way back, and its true size."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.backbones.maskdit.config import MaskDiTConfig
from graftax.backbones.maskdit.variants import variant
from graftax.backbones.maskdit.zoo import ZOO
from graftax.backbones.zoo import find
from graftax.checkpoint.tensors import read_tensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.diffusion.guidance import guided
from graftax.errors import BadInput
from graftax.models import init, param_shapes
from graftax.models.backbone import find as backbone_of
from graftax.models.cost import count_params, count_trainable, flops
from graftax.models.forward import forward
from graftax.models.policy import Mask, Policy
from graftax.models.routing import places_of
from graftax.spec import Prediction
from graftax.train.diffusion_task import diffusion_loss
from graftax.train.recipes import Recipe

FILE = Path(__file__).parents[2] / "goldens" / "modern" / "maskdit.pt"
DATA = 0.5  # EDM's sigma_data


@functools.cache
def opened():
    model = graftax.load(FILE, num_heads=2, decoder_heads=2)
    with np.load(FILE.with_suffix(".npz")) as file:
        return model, dict(file)


def test_the_denoised_image():
    """EDM's preconditioner around the network (arXiv 2306.09305, as arXiv 2206.00364, Table 1); a row without a class."""
    model, golden = opened()
    assert model.spec.prediction == Prediction("edm", "log_sigma", variance=False)
    x, sigma = np.moveaxis(golden["x"], 1, -1), golden["sigma"]
    y = np.where(golden["y_onehot"].any(1), golden["y_onehot"].argmax(1), model.spec.classes)
    assert model.spec.classes in y
    s, root = sigma[:, None, None, None], np.sqrt(sigma**2 + DATA**2)[:, None, None, None]
    out = np.asarray(model((x / root).astype(np.float32), (np.log(sigma) / 4).astype(np.float32), y))
    expected = np.moveaxis(golden["D_full"], 1, -1)
    denoised = x * DATA**2 / root**2 + out * s * DATA / root
    assert np.abs(denoised - expected).max() <= 2e-6 * np.abs(expected).max()


def test_guidance():
    """On all channels, a class's row of zeros the null one; the preconditioner is affine, so guidance may be inside."""
    model, golden = opened()
    x, sigma, y = np.moveaxis(golden["x"], 1, -1), 1.3, np.where(golden["y_onehot"].any(1), golden["y_onehot"].argmax(1), 10)
    root = np.sqrt(sigma**2 + DATA**2)
    guide = guided(lambda x, t, y: model(x, t, y), 1.5, lambda y: np.full_like(y, 10), None)
    out = np.asarray(guide((x / root).astype(np.float32), np.full(3, np.log(sigma) / 4, np.float32), y))
    expected = np.moveaxis(golden["D_cfg_1p5_sigma1p3"], 1, -1)
    denoised = x * DATA**2 / root**2 + out * sigma * DATA / root
    assert np.abs(denoised - expected).max() <= 2e-6 * np.abs(expected).max()


def test_the_denoised_image_of_half_of_the_tokens():
    """Visible ones are the reference's, in their own order; the decoder fills in the others."""
    model, golden = opened()
    policy, draws = Policy(mask=Mask(0.5)), {"routes": golden["uniforms"][:, None]}
    kept = policy.kept(model.spec, draws, 0)
    np.testing.assert_array_equal(kept, np.sort(golden["ids_keep"], axis=1))
    here = np.asarray(places_of(kept, 16)[2])
    np.testing.assert_array_equal(here, golden["mask"] == 0)
    np.testing.assert_array_equal(here, golden["ids_restore"] < 8)
    x, sigma = np.moveaxis(golden["x"], 1, -1), golden["sigma"][:, None, None, None]
    root, cond = np.sqrt(sigma**2 + DATA**2), {"y": classes(golden)}

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, policy, draws):
        t = (np.log(golden["sigma"]) / 4).astype(np.float32)
        return forward(model.spec, params, (x / root).astype(np.float32), t, cond, policy=policy, key=draws)[0]

    expected = np.moveaxis(golden["D_masked"], 1, -1)
    denoised = x * DATA**2 / root**2 + run(model.params, policy, draws) * sigma * DATA / root
    assert np.abs(denoised - expected).max() <= 2e-6 * np.abs(expected).max()
    whole = (run(model.params, given, draws) for given in (Policy(), Policy(mask=Mask(0.0))))
    np.testing.assert_array_equal(*whole)  # of the ratio 0 the program is the plain one


@pytest.mark.parametrize(
    ("ratio", "weight", "key"),
    [(0.5, 0.1, "loss_masked"), (0.5, 0.0, "loss_masked_edm_only"), (0.0, 0.1, "loss_unmasked")],
)
def test_the_loss(ratio, weight, key):
    """EDM's on what is seen, and the reconstruction of the noisy image where it is not."""
    model, golden = opened()
    recipe = Recipe.parse(f"mask({ratio}, weight={weight})")
    loss = diffusion_loss(model.spec, class_dropout=0.0, recipe=recipe)
    sigma, (image, noise) = golden["loss_sigma"], (np.moveaxis(golden[f"loss_{name}"], 1, -1) for name in ("img", "noise"))
    batch = {
        "image": image, "noise": noise, "t": sigma, "cond": {"y": classes(golden)},
        "recipe": {"policy": {"routes": golden["uniforms"][:, None]}, "arrays": {}},
    }  # fmt: skip
    found, metrics = jax.jit(loss.given)(model.params, batch)
    np.testing.assert_allclose(found, golden[key].mean(), rtol=1e-5)
    assert ("reconstruction" in metrics) == bool(ratio)


def classes(golden):
    """Of rows of one number 1, and of rows without one the null class."""
    return np.where(golden["y_onehot"].any(1), golden["y_onehot"].argmax(1), 10)


def test_there_and_back_bit_for_bit(tmp_path):
    given, _ = read_tensors(FILE)
    graftax.export(opened()[0], tmp_path / "model.pt")
    back, source = read_tensors(tmp_path / "model.pt")
    assert source.entry == "ema"
    assert back.keys() == given.keys()
    assert all(np.array_equal(back[key].view(np.int32), array.view(np.int32)) for key, array in given.items())
    assert graftax.load(tmp_path / "model.pt").spec == opened()[0].spec


@pytest.mark.slow
def test_fresh_parameters():
    """Modulations and output start at zero, tables are the true ones."""
    model, fresh = opened()[0], init(opened()[0].spec, jax.random.key(0))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, model.params)
    assert np.allclose(fresh["decoder"]["pos_embed"], model.params["decoder"]["pos_embed"], atol=1e-6)
    assert not np.any(fresh["decoder"]["01"]["adaln"]["kernel"])
    assert np.any(fresh["decoder"]["01"]["mixer"]["qkv"]["kernel"])


def test_what_does_not_fit_is_refused(tmp_path):
    given, _ = read_tensors(FILE)
    del given["model.decoder_blocks.1.attn.proj.bias"]
    write_torch(tmp_path / "short.pt", given)
    with pytest.raises(BadInput, match=r"missing: decoder_blocks\.1\.attn\.proj\.bias$"):
        graftax.load(tmp_path / "short.pt", num_heads=2, decoder_heads=2)
    with pytest.raises(BadInput, match="decoder_heads: not stored in tensors"):
        graftax.load(FILE, num_heads=2)
    with pytest.raises(BadInput, match="5 does not divide decoder_width 24"):
        backbone_of(opened()[0].spec).check(opened()[0].spec.with_frame(decoder_heads=5))


def test_true_size():
    spec = variant("MaskDiT-XL/2")
    assert count_trainable(spec) == 730_115_216
    tree = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
    assert count_params(spec) == tree == find("maskdit-finetune0").params
    assert flops(spec) == find("maskdit-finetune0").flops == pytest.approx(2 * 125.78e9, rel=1e-3)  # of multiply-adds
    assert flops(spec, policy=Policy(mask=Mask(0.5))) == pytest.approx(2 * 65.45e9, rel=2e-3)  # the decoder's too
    assert all(entry.spec() == spec for entry in ZOO.values())


def test_from_scratch_by_name_or_by_every_size():
    named = MaskDiTConfig(variant="MaskDiT-XL/2", num_classes=10).spec()
    assert named == variant("MaskDiT-XL/2", classes=10)
    sizes = {"input_size": 32, "hidden_size": 1152, "depth": 28, "num_heads": 16, "num_classes": 10}
    decoder = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
    assert MaskDiTConfig(**sizes, **decoder).spec() == named
    with pytest.raises(BadInput, match=r"neither variant nor input_size.*decoder_width, decoder_depth, decoder_heads"):
        MaskDiTConfig(hidden_size=8, depth=1, num_heads=1).spec()
