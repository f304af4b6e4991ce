"""`graftax report` and `graftax compare` on a run folder made by hand: what is there is shown, what is not is named."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from graftax import api
from graftax.cli.main import main
from graftax.diffusion import Sampling
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.result import Result, environment
from graftax.evaluate.sample_set import draw_set
from graftax.models import Model
from graftax.surgery import replace
from graftax.testing import random_params, tiny_spec

SCORES = {"teacher": 0.2, "grafted": 0.5}
PROTOCOL = Protocol(sampling=Sampling(sampler="ddim", steps=2), count=12, labels="balanced")


@pytest.fixture
def run(tmp_path):
    """A run that was grafted, distilled, and evaluated before and after."""
    teacher = Model(tiny_spec(), random_params(tiny_spec(), jax.random.key(0)))
    student = api.graft(teacher, replace("blocks[1::2].mixer", "hyena_x"), rng=jax.random.key(1))
    folder = tmp_path / "experiment"
    api.save(teacher, tmp_path / "teacher")
    api.save(student, folder / "grafted")
    settings = {"teacher": str(tmp_path / "teacher"), "distill": {"settings": {"steps": 20}}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "distill").mkdir()
    lines = [{"step": s, "split": "train", "loss": 1 / s, "grad_norm": 0.5, "images_per_s": 9.0} for s in (10, 20)]
    lines.append(
        {"step": 20, "split": "eval", "loss": 0.2, "error": 0.3, "error/blocks[1].mixer": 0.2, "error/blocks[3].mixer": 0.4}
    )
    (folder / "distill" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for (name, score), model in zip(SCORES.items(), (teacher, student), strict=True):
        evaluated(folder / "evaluation" / name, model, score, PROTOCOL)
    return folder


def evaluated(folder, model, score, protocol):
    draw_set(model, protocol, lambda x: np.tanh(x[..., :3]), folder, identity=str(score), part=12, show=False)
    named = dataclasses.replace(protocol, features="toy features")
    Result(folder.name, str(score), model.spec, named, {"Fréchet": score}, environment()).save(folder)


def test_the_report_shows_what_the_run_holds(run):
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    for shown in (
        "replace(", "Stage 1: distillation", "Error by block", "toy features", "same noise", "0.2", "0.5", PROTOCOL.labels,
        "distill.settings.steps = 20", "teacher -&gt; grafted", "hyena_x(kernel=4)", environment()["jax"],
    ):  # fmt: skip
        assert shown in text, shown
    assert "Not evaluated" not in text
    assert len(re.findall("data:image/png", text)) == 6 + 2  # five curves, the errors, two grids
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert main(["report", str(run)]) == 2, "it is there already"
    assert main(["report", str(run), "--overwrite"]) == 0


def test_what_is_missing_is_named_with_its_command(run):
    for path in sorted((run / "evaluation").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "config.json").unlink()
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "graftax evaluate MODEL --out" in text
    assert "Settings" not in text


def test_compare_prints_a_table_and_writes_a_page(run, tmp_path, capsys):
    assert main(["compare", str(run), "--out", str(tmp_path / "page")]) == 0
    out = capsys.readouterr().out
    teacher, grafted = (
        re.search(rf"^{name} +{score} +\d{{3}},\d{{3}} +\d\.\d+ M ", out, re.M) for name, score in SCORES.items()
    )
    assert teacher is not None
    assert grafted is not None
    assert teacher.start() < grafted.start(), "in the order in which a run makes them"
    assert "features: toy features" in out
    text = (tmp_path / "page" / "compare.html").read_text()
    assert "Fréchet against cost" in text
    assert "Lower is better" in text
    assert main(["compare", str(run), "--out", str(tmp_path / "page"), "--json"]) == 2, "it is there already"
    capsys.readouterr()
    assert main(["compare", str(run), "--out", str(tmp_path / "page"), "--json", "--overwrite"]) == 0
    assert [one["scores"]["Fréchet"] for one in json.loads(capsys.readouterr().out)["results"]] == list(SCORES.values())


@pytest.mark.slow
def test_other_protocols_are_refused_unless_asked_for(run, tmp_path, capsys):
    spec = tiny_spec()
    evaluated(
        run / "evaluation" / "again",
        Model(spec, random_params(spec, jax.random.key(0))),
        0.3,
        dataclasses.replace(PROTOCOL, sampling=Sampling(sampler="ddim", steps=3)),
    )
    assert main(["compare", str(run), "--out", str(tmp_path / "page")]) == 2
    assert "steps: 2 (teacher, grafted), 3 (again)" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
    assert main(["compare", str(run), "--out", str(tmp_path / "page"), "--any-protocol"]) == 0
    assert "do not compare as they stand" in (tmp_path / "page" / "compare.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "nowhere: no such folder"), (["compare", "nowhere"], "nowhere: no such folder"),
        (["report", "."], "expected the folder of a run"), (["compare", "."], "no scores/"),
        (["report", ".", "--shown", "0"], "shown: got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
