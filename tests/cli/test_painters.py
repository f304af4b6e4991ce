"""`graftax painters`: from a model to its page, with random numbers, classes, a pipeline's texts; what it refuses."""

import json

import jax
import pytest
import tiny_pipeline
from tiny_pipeline import write_pipeline

import graftax
from graftax.backbones.flux import flux_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.data.text.captions import read_prompts
from graftax.models import Model, random_params
from graftax.study import subjects
from graftax.testing import tiny_spec

QUICK = ("--per-prompt=1", "--orders=2", "--steps=2", "--quiet")
SIZES = {"input_size": 8, "hidden_size": 16, "num_heads": 2, "text_width": 12, "text_tokens": 6, "pooled_width": 8,
         "in_channels": 4}  # fmt: skip


def saved(folder, spec):
    graftax.save(Model(spec, random_params(spec, jax.random.key(0))), folder)
    return folder


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Three double and three single blocks."""
    return saved(tmp_path_factory.mktemp("painters") / "flux", flux_spec(double=3, single=3, **SIZES))


def found_in(folder):
    return json.loads((folder / "painters.json").read_text())


@pytest.mark.slow
def test_a_model_of_two_kinds_without_a_text_encoder(run, flux, tmp_path):
    code, out, err = run("painters", flux, "--prompts=random", "--latents=none", "--out", tmp_path / "out", *QUICK)
    assert code == 0, (out, err)
    found, page = found_in(tmp_path / "out"), (tmp_path / "out" / "painters.html").read_text()
    assert [(one["name"], one["span"]) for one in found["stretches"]] == [
        ("double", [0, 3]), ("single", [3, 6]), ("double and single", [0, 6]),
    ]  # fmt: skip
    assert found["compilations"] == [1, 1]
    assert set(found["similarity"]) == {"all", "img", "txt"}
    assert all(len(form["cosine"]) == 7 for stream in found["similarity"].values() for form in stream.values())
    assert [line["span"] for line in found["single"]] == [[i, i + 1] for i in range(6)]
    assert [line["span"] for line in found["switch"]] == [[0, 2], [1, 3], [3, 5], [4, 6]]
    assert all(line["error"] > 0 and line["distance"] > 0 and len(line["distances"]) == 5 for line in found["single"])
    for text in (
        found["source"],
        "No pictures: these arrays have no decoder here",
        "Eight questions",
        "R8: Looping helps",
        "Layers double and single",
        "1. Do layers use one space",
        "NOT TESTABLE",
    ):
        assert text in page
    assert "R6 not testable here" in out
    assert out.count("\n") == 9  # a line for each claim, and where the page is
    code, _, err = run("painters", flux, "--prompts=random", "--beside", tmp_path, "--out", tmp_path / "other", *QUICK)
    assert (code, "painters.json: cannot be read, expected what `graftax painters` writes" in err) == (2, True)


@pytest.mark.slow
def test_the_last_block_of_sd3_stays_where_it_is(run, tmp_path, recwarn):
    """It is skipped, and part of no other order; guidance leads away from the example's text."""
    model = saved(tmp_path / "sd3", sd3_spec(depth=5, dual_attention=range(2), **SIZES))
    code, out, err = run("painters", model, "--prompts=random", "--out", tmp_path / "out", *QUICK)
    assert code == 0, (out, err)
    (one,) = found_in(tmp_path / "out")["stretches"]
    assert (one["name"], one["span"], one["joint"]) == ("sd3_dual+sd3", [0, 4], True)
    assert not [w for w in recwarn if "from the end" in str(w.message)]


@pytest.mark.slow
def test_a_class_model_paints_its_classes(run, tmp_path):
    model = saved(tmp_path / "dit", tiny_spec(num_classes=3, hidden_size=16, num_heads=2))
    assert run("painters", model, "--out", tmp_path / "out", *QUICK)[0] == 0
    assert found_in(tmp_path / "out")["prompts"] == ["class 0", "class 1", "class 2"]


@pytest.mark.slow
def test_a_pipeline_paints_the_prompts_of_the_blog(run, tmp_path, monkeypatch):
    """Read by its own text encoder, decoded by its own VAE."""
    own = tiny_pipeline.pixart
    monkeypatch.setattr(tiny_pipeline, "pixart", lambda: own(depth=3))
    pipeline = write_pipeline(tmp_path / "pipeline")
    code, out, err = run("painters", pipeline, "--prompts=blog", "--out", tmp_path / "out", *QUICK)
    assert code == 0, (out, err)
    found = found_in(tmp_path / "out")
    assert found["prompts"][4] == "The Golden Gate Bridge."
    assert found["source"].startswith("texts as pipeline ")
    assert (tmp_path / "out" / "painted-pixart.png").read_bytes().startswith(b"\x89PNG")


def test_the_prompts_of_the_blog():
    prompts = read_prompts(subjects.PROMPTS)
    assert len(prompts) == 5
    assert prompts[1] == "A red dog with a blue hat and a yellow cat with pink sunglasses sitting together."


def test_refuses(run, flux, tmp_path):
    classes, short = (saved(tmp_path / str(n), tiny_spec(depth=n, hidden_size=16, num_heads=2)) for n in (3, 2))
    for arguments, message in [
        ([classes, "--prompts=blog"], "got blog, but"),
        ([short], "a program of 2 steps, expected three of one make"),
        ([flux], "text-encoder: missing, and"),
        ([flux, "--prompts=random", "--per-prompt=0"], "each: got 0, expected 1 or more"),
    ]:
        code, _, err = run("painters", *arguments, "--out", tmp_path / "out", "--steps=2")
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "out" / "painters.json").exists()
    code, _, err = run("analyze", flux, "--what=painters", "--out", tmp_path / "analysis", "--steps=2")
    assert (code, "takes texts, expected one of classes" in err) == (2, True)
