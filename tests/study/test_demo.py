"""The demo's page says what was found; the demo itself, in its shortest form."""

import json
from dataclasses import dataclass, replace

import pytest

from graftax.data.config import DataConfig
from graftax.evaluate.score import Score
from graftax.pages import demo_page


@dataclass(frozen=True)
class Stub:
    """As much of a `Judged`, `Branch` or `Findings` as the verdict reads."""

    score: Score | None = None
    name: str = ""
    judged: tuple = ()
    adapted: object = None
    teacher: object = None
    branches: tuple = ()
    config: object = None
    data: DataConfig | None = None
    examiner: object = None
    real: Score | None = None


def score(accuracy, frechet):
    return Score({"accuracy": accuracy, "frechet": frechet}, 500)


def findings(accuracy, frechet):
    half = Stub(name="50 %", judged=(Stub(score(accuracy, frechet)),))
    grafts = half, replace(half, name="100 %")
    return Stub(teacher=Stub(score(0.90, 0.20)), branches=grafts, config=Stub(data=DataConfig()))


@pytest.mark.parametrize(
    ("accuracy", "frechet", "met"),
    [(0.90, 0.20, (True, True)), (0.86, 0.29, (True, True)), (0.84, 0.25, (False, True)), (0.95, 0.31, (True, False))],
)
def test_verdict_is_honest(accuracy, frechet, met):
    lines = demo_page.verdict(findings(accuracy, frechet))
    assert tuple("NOT met" not in line for line in lines[:2]) == met
    assert f"{accuracy:.1%}" in lines[0]
    assert f"x {frechet / 0.20:.2f}" in lines[1]
    assert lines[2].startswith("100 %")


@pytest.mark.parametrize(("accuracy", "points"), [(0.90, "(0.0 points"), (0.8999, "(0.0 points"), (0.91, "(+1.0 points")])
def test_verdict_has_no_negative_zero(accuracy, points):
    assert points in demo_page.verdict(findings(accuracy, 0.20))[0]


@pytest.mark.slow
def test_shortest_demo(run, tmp_path):
    short = {
        "judging.judged": 70, "judging.shown": 2, "judging.sample.steps": 2, "judging.sample.batch_size": 70,
        "distill.settings.steps": 2,
        "distill.eval_every": 1, "finetune.loop.steps": 2, "finetune.loop.eval_every": 1,
        "finetune.optimiser.warmup_steps": 1, "finetune.optimiser.decay_steps": 2, "data.limit": 256,
    }  # fmt: skip
    argv = ("demo", "--workdir", tmp_path / "demo", *(f"--config.{key}={value}" for key, value in short.items()))
    code, out, err = run(*argv)
    assert code == 0
    assert "[9]" in err
    assert f"Report: {tmp_path}/demo/report.html" in out
    page = (tmp_path / "demo" / "report.html").read_text()
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert len(results["models"]) == 7
    assert set(results["layer_errors"]["100 % grafted"]) == set(map(str, range(10)))
    for line in results["verdict"]:
        assert line.replace("'", "&#x27;") in page
    code, _, _ = run(*argv)  # trainings are finished: only the judging is repeated
    assert code == 0
    assert json.loads((tmp_path / "demo" / "results.json").read_text())["models"] == results["models"]
