"""`graftax analyze` on the tiny world: every part, its folder, text that `graft` takes, what it refuses."""

import json

import jax
import pytest

from graftax import api
from graftax.evaluate.drawing import SampleConfig
from graftax.models import Model
from graftax.study import ablation
from graftax.study.analysis import Settings
from graftax.surgery import parallel_pairs, replace
from graftax.testing import random_params, tiny_spec

QUICK = ("--samples=4", "--steps=4", "--painted=2", "--orders=2", "--shown=2", "--batch-size=4")
PNG = b"\x89PNG"


def analyze(run, model, out, *extra):
    code, printed, err = run("analyze", model, "--out", out, *QUICK, *extra)
    assert code == 0, (printed, err)
    return printed, json.loads((out / "analysis.json").read_text())


def test_locality(run, teacher, tmp_path):
    """The rankings halve the blocks, and are text that `graft` takes."""
    printed, found = analyze(run, teacher, tmp_path / "found", "--what=locality")
    assert found["protocol"]["samples"] == 4
    assert "painters" not in found
    ranks = found["locality"]["ranks"]
    assert found["locality"]["k"] == 2
    assert sorted(ranks["top-local"]["blocks"] + ranks["low-local"]["blocks"]) == [0, 1, 2, 3]
    assert ranks["top-local"]["selector"] in printed
    edit = f"--edit={ranks['top-local']['selector']}=hyena_x"
    assert run("graft", teacher, edit, "--out", tmp_path / "student")[0] == 0
    assert {path.name for path in (tmp_path / "found").iterdir()} >= {"locality.png", "report.html"}


def test_few_samples_spread_over_many_classes(spec):
    settings = Settings(sampling=SampleConfig(), samples=4)
    assert settings.labels(tiny_spec(num_classes=1000), 4).tolist() == [0, 250, 500, 750]
    assert settings.labels(spec, 5).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.slow
def test_everything(run, teacher, tmp_path):
    out = tmp_path / "found"
    _, found = analyze(run, teacher, out)
    # Activations, similarity: every layer, every state.
    assert all(len(found["activations"]["mlp/out"][key]) == 4 for key in ("mean", "std", "kurtosis", "peak"))
    assert len(found["similarity"]["sample"]["cosine"]) == 5
    assert found["similarity"]["token"]["groups"][-1][1] == 5
    # Painters: one compilation; random once per order; a grid of spans.
    painters = found["painters"]
    assert painters["compilations"] == 1
    assert [line["span"] for line in painters["found"]["single"]] == [[i, i + 1] for i in range(4)]
    assert len(painters["found"]["random"]) == 2 * len(painters["found"]["reverse"])
    assert len(painters["found"]["grid skip"]) == 9
    assert all(line["error"] > 0 for line in painters["found"]["single"])
    pages = (out / "report.html").read_text()
    assert "Layers as painters" in pages
    pictures = sorted(out.glob("*.png"))
    assert {path.stem.split("-")[0] for path in pictures} == {"locality", "activations", "similarity", "painters", "painted"}
    assert pages.count("data:image/png") == len(pictures)
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


@pytest.mark.slow
def test_painters_of_parallel_pairs(run, tmp_path, spec):
    """Steps that merge blocks are skipped and reordered as wholes, and not made parallel again."""
    deep = spec.replace(blocks=spec.blocks + spec.blocks[:2], program=())
    pairs = api.graft(Model(deep, random_params(deep, jax.random.key(0))), parallel_pairs(), jax.random.key(0))
    api.save(pairs, tmp_path / "pairs")
    _, found = analyze(run, tmp_path / "pairs", tmp_path / "found", "--what=painters")
    assert found["painters"]["steps"] == 3
    assert "parallel" not in found["painters"]["found"]
    assert found["painters"]["compilations"] == 1


@pytest.mark.slow
def test_ablation(run, recipe, teacher, tmp_path):
    config = ("--config", recipe, "--config.distill.settings.steps=3", "--blocks=1,3", "--seeds=2", "--slots=mlp")
    printed, found = analyze(run, teacher, tmp_path / "found", "--what=ablation", *config)
    lines = found["ablation"]["lines"]
    assert [(line["seed"], line["objective"]) for line in lines] == [(s, o) for s in (0, 1) for o in ("l1", "l2", "huber")]
    assert all(line["sites"] == ["blocks[1].mlp", "blocks[3].mlp"] for line in lines)
    assert all(line["output error"] > 0 and set(line["losses"]) == {"l1", "l2", "huber"} for line in lines)
    assert "mlp, huber" in (tmp_path / "found" / "report.html").read_text()
    assert "best to worst" in printed


def test_an_interrupted_ablation_continues(run, recipe, teacher, tmp_path, monkeypatch):
    asked = []

    def lines(_teacher, _ablation, slot, seed, _score):
        if len(asked) == 1 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        asked.append((slot, seed))
        numbers = {"losses": {"l1": 1.0, "l2": 2.0, "huber": 1.5}, "error": 0.5, "output error": 0.25}
        return [{"slot": slot, "seed": seed, "objective": name, "sites": [], **numbers} for name in numbers["losses"]]

    monkeypatch.setattr(ablation, "_lines", lines)
    command = ("analyze", teacher, "--what=ablation", "--seeds=2", "--config", recipe, "--out", tmp_path / "found")
    assert run(*command)[0] == 130
    code, _, said = run(*command)
    assert code == 0
    assert "mixer operators, seed 0: l1, l2, huber, done" in said
    assert asked == [("mixer", 0), ("mlp", 0), ("mixer", 1), ("mlp", 1)], "each once"
    found = json.loads((tmp_path / "found" / "analysis.json").read_text())["ablation"]["lines"]
    assert [(line["slot"], line["seed"]) for line in found[::3]] == asked
    assert not (tmp_path / "found" / ablation.PARTIAL).exists()

    # Other settings are measured anew; what cannot be read is refused.
    (tmp_path / "found" / ablation.PARTIAL).write_text(json.dumps({"identity": "other", "lines": found}))
    assert run(*command, "--overwrite")[0] == 0
    assert len(asked) == 8
    (tmp_path / "found" / ablation.PARTIAL).write_text("{")
    code, _, err = run(*command, "--overwrite")
    assert code == 2
    assert "remove it to start over" in err


def test_refuses(refused, teacher, tmp_path, recipe):
    def said(*extra, model=teacher):
        return refused("analyze", model, "--out", tmp_path / "found", *extra)

    assert "--what: got 'colour'" in said("--what=colour")
    assert "--k: got 16, expected 0..15 of 16 tokens" in said("--k=16")
    assert "--share: got 0" in said("--share=0")
    assert "--share: 10% of 4 blocks is none" in said("--share=10")
    assert "samples: got 0" in said("--samples=0")
    assert "no held-out images" in said("--what=ablation", "--config", recipe, "--config.data.held_out=0")
    assert "the model takes (8, 8, 1)" in said("--what=ablation", "--config", recipe, "--config.data.size=16")
    assert "the ablation takes data from it" in said("--what=ablation")
    assert "only the ablation takes data" in said("--config", recipe)
    assert "--seeds: got 0" in said("--what=ablation", "--config", recipe, "--seeds=0")
    assert "--blocks: got 'x'" in said("--what=ablation", "--config", recipe, "--blocks=x")
    assert "--blocks: got 4, expected 0..3" in said("--what=ablation", "--config", recipe, "--blocks=1,4")
    hyena = api.graft(api.load(teacher), replace("blocks[*].mixer", "hyena_x"), jax.random.key(0))
    api.save(hyena.replace(spec=hyena.spec.replace(program=hyena.spec.program[:2])), tmp_path / "short")
    assert "no mixer 'mha' left" in said(model=tmp_path / "short")
    assert "the program has 2 steps" in said("--what=painters", model=tmp_path / "short")
    assert "--slots: got 'norm'" in said("--what=ablation", "--config", recipe, "--slots=norm")
    assert "no such file" in said(model=tmp_path / "nothing")
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "analysis.json").write_text("mine")
    assert "analysis.json: exists already" in said()
    assert "a file, expected a folder" in said("--out", tmp_path / "found" / "analysis.json")
    assert (tmp_path / "found" / "analysis.json").read_text() == "mine"
