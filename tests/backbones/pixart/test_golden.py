"""PixArt against the reference modules: every tap that they give, all variants, both layouts."""

from pathlib import Path

import numpy as np
import pytest

import graftax
from graftax import api

GOLDENS = Path(__file__).parents[2] / "goldens" / "pixart"
TOLERANCE = 2e-5  # relative to the largest value; float32 against float32
HEADS = {"sigma": 4, "alpha_1024": 3, "sigma_kv_compress": 4}
FILES = [(name, file) for name in HEADS for file in ("original.pth", "diffusers") if (GOLDENS / name / file).exists()]
assert len(FILES) == 5


def load(name, file):
    told = {} if file == "diffusers" else {"num_heads": HEADS[name], "interpolation": 2}
    return graftax.load(GOLDENS / name / file, **told), dict(np.load(GOLDENS / name / "io.npz"))


def conditions(golden, *without):
    names = {"text", "text_mask", "resolution", "aspect_ratio"} - {*without}
    return {name: golden[name] for name in names if name in golden}


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "file"), [pytest.param(*one, marks=pytest.mark.slow if one[1] == "diffusers" else ()) for one in FILES]
)
def test_outputs_and_taps(name, file):
    model, golden = load(name, file)
    x, t = nhwc(golden["x"]), golden["t"]
    out, taps = model.apply(x, t, capture=("block/in", "block/out"), **conditions(golden))
    assert relative(out, nhwc(golden["out"])) <= TOLERANCE
    for i, found in enumerate(taps["block/out"]):
        assert relative(found, golden[f"block.{i}.out"]) <= TOLERANCE
    if "embed.out" in golden:
        assert relative(taps["block/in"][0], golden["embed.out"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "file"), [("sigma", "original.pth"), pytest.param("alpha_1024", "diffusers", marks=pytest.mark.slow)]
)
def test_other_sizes_and_no_mask(name, file):
    model, golden = load(name, file)
    out = model(nhwc(golden["x_rect"]), golden["t"], **conditions(golden))
    assert relative(out, nhwc(golden["out_rect"])) <= TOLERANCE
    out = model(nhwc(golden["x"]), golden["t"], **conditions(golden, "text_mask"))
    assert relative(out, nhwc(golden["out_nomask"])) <= TOLERANCE


@pytest.mark.parametrize("file", ["diffusers", pytest.param("original.pth", marks=pytest.mark.slow)])
def test_the_pipelines_latents(file):
    """diffusers' pipeline in 6 steps, guided towards its prompts and away from the encoded negative ones; the latents of
    this random network grow to 1,000."""
    model, golden = load("sigma", file)[0], dict(np.load(GOLDENS / "sigma" / "pipeline.npz"))
    out = graftax.sample(
        model, cond={"text": golden["text"], "text_mask": golden["text_mask"]},
        null_cond={"text": golden["neg_text"], "text_mask": golden["neg_mask"]},
        steps=6, initial_noise=nhwc(golden["latents"]),
    )  # fmt: skip
    assert relative(out, nhwc(golden["out"])) <= 1e-4


def test_its_authors_settings():
    sampling = api.sampling_for(load("sigma", "original.pth")[0].spec)
    assert str(sampling) == "DPM-Solver++ 2M, 20 steps, guidance 4.5 on all channels"
