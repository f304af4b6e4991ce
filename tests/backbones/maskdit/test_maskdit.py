"""MaskDiT: its file, what it computes of all tokens, the way back, and its true size."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
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
from graftax.spec import Prediction

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
    assert all(entry.spec() == spec for entry in ZOO.values())
