"""The sweep: every variant once, continued after an interruption, redone after a change; its table and its refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from graftax.errors import BadInput, NonFinite
from graftax.evaluate import drawing
from graftax.evaluate.bench.timing import Timing
from graftax.evaluate.score import Score
from graftax.study import experiment
from graftax.study import sweep as sweeps
from graftax.study.experiment import STAGES, Branch, Judged

SWEEP = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "workdir": {workdir!r}, "teacher": {teacher!r}, "kind": "sweep",
        "judging": {{"classifier": {judge!r}, "judged": 12, "shown": 1, "sample": {{"steps": 2, "batch_size": 12}}}},
        "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "variants": {{
            "hyena_x 50 %": {{"edits": ("blocks[50%].mixer=hyena_x(kernel=4)",)}},
            "mlp ratio 3": {{"edits": ("blocks[*].mlp=3",)}},
        }},
        "distill": {{"settings": {{"steps": 4, "learning_rate": 1e-3}}, "batch_size": 8, "save_every": 1}},
        "finetune": {{"loop": {{"steps": 4, "save_every": 1}}, "batch_size": 8,
                     "optimiser": {{"learning_rate": 1e-3, "warmup_steps": 0}}}},
    }})
"""
DEPTH = 2
NAMES = ["hyena_x 50 %", "mlp ratio 3"]
REFUSED_RATE = 1e30
"""The learning rate at which the stand-in for training fails, as the real one does."""


@pytest.fixture
def sweep(tmp_path, teacher, judge, data):
    """A config file of two variants."""
    paths = {"workdir": tmp_path / "sweep", "teacher": teacher, "judge": judge, "data": data}
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP.format(**{key: str(value) for key, value in paths.items()}))
    return path


@pytest.fixture
def untrained(monkeypatch):
    """Stands in for sampling, training and timing, which take the time; gives the list of branches asked for."""
    asked = []

    def judge(self, name, model, title):
        return Judged(title, np.zeros((12, 8, 8, 1), np.uint8), Score({"accuracy": 0.5, "frechet": 0.1}, 12), 0.2)

    def branch(self, name, student, report, work, distill, finetune, subsets):
        asked.append(name)
        work.mkdir(parents=True)
        if distill.settings.learning_rate == REFUSED_RATE:
            raise NonFinite("step 2: loss or gradient not finite")
        judged = tuple(self.judge(name, student, title) for title in STAGES)
        return Branch(name, report, judged, [{"step": 4, "split": "eval", "error": 0.3}], []), student, None

    monkeypatch.setattr(experiment.Experiment, "judge", judge)
    monkeypatch.setattr(experiment.Experiment, "branch", branch)
    monkeypatch.setattr(sweeps, "forward_times", lambda models: {name: Timing((0.01, 0.02)) for name in models})
    return asked


def by_name(folder):
    return {run["variant"]: run for run in json.loads((folder / "results.json").read_text())["runs"]}


@pytest.mark.usefixtures("untrained")
def test_a_sweep_does_each_variant_once(run, sweep, tmp_path):
    folder = tmp_path / "sweep"
    code, out, err = run("sweep", "--config", sweep)
    assert code == 0, err
    first = by_name(folder)
    assert list(first) == NAMES
    for line in first.values():
        assert [score["count"] for score in line["scores"]] == [12] * 3
        assert np.isfinite([line["error"], *line["losses"], line["forward"], line["slowdown"]]).all()
    assert list((folder / "work").iterdir()) == [], "checkpoints of finished runs are gone"
    table = (folder / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["", "---", "teacher", *NAMES]
    page = (folder / "report.html").read_text()
    assert all(name in page and name in out for name in NAMES)

    code, out, err = run("sweep", "--config", sweep, "--json")
    assert code == 0
    assert "2 of them done already" in err
    assert by_name(folder) == first
    assert [line["variant"] for line in json.loads(out)["runs"]] == NAMES

    # One variant changes: it alone is done again.
    sweep.write_text(sweep.read_text().replace("kernel=4", "kernel=3"))
    code, _, err = run("sweep", "--config", sweep)
    assert code == 0
    assert "1 of them done already" in err
    second = by_name(folder)
    assert second["mlp ratio 3"] == first["mlp ratio 3"]
    assert second["hyena_x 50 %"]["identity"] != first["hyena_x 50 %"]["identity"]
    assert second["hyena_x 50 %"]["parameters"] < first["hyena_x 50 %"]["parameters"]


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_scores(run, sweep, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "sweep"
    assert run("sweep", "--config", sweep, "--workdir", whole)[0] == 0
    argv = [sys.executable, "-m", "graftax.cli", "sweep", "--config", str(sweep)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while process.poll() is None and not list(folder.glob("work/*/finetune/checkpoints/[0-9]*/record")):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, _, err = run("sweep", "--config", sweep)
    assert code == 0, err
    for name, line in by_name(folder).items():
        for key in ("identity", "error", "scores", "losses"):
            assert line[key] == by_name(whole)[name][key], (name, key)


def fails_at_stage_1(path):
    own = f'"hyena_x 50 %": {{"distill": {{"settings": {{"steps": 4, "learning_rate": {REFUSED_RATE}}}, "batch_size": 8}},'
    path.write_text(path.read_text().replace('"hyena_x 50 %": {', own))


def check_failed(run, sweep, folder):
    fails_at_stage_1(sweep)
    code, _, err = run("sweep", "--config", sweep)
    assert code == 3
    assert err.splitlines()[-1] == "graftax: error: sweep: 1 of 2 runs became non-finite: hyena_x 50 %"
    lines = by_name(folder)
    assert "loss or gradient not finite" in lines["hyena_x 50 %"]["failure"]
    assert lines["hyena_x 50 %"]["scores"] == []
    assert lines["mlp ratio 3"]["failure"] == ""
    assert len(lines["mlp ratio 3"]["scores"]) == 3
    assert "failed" in (folder / "table.md").read_text()


@pytest.mark.slow
def test_a_failed_variant_is_recorded_and_the_others_go_on(run, sweep, tmp_path, untrained):
    check_failed(run, sweep, tmp_path / "sweep")
    assert untrained == NAMES
    code, _, err = run("sweep", "--config", sweep)
    assert code == 3, "it is still among the results"
    assert "2 of them done already" in err
    assert untrained == NAMES, "but is not tried again"


@pytest.mark.slow
def test_a_training_that_fails_is_recorded(run, sweep, tmp_path):
    check_failed(run, sweep, tmp_path / "sweep")


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_the_next_variant(run, sweep, tmp_path, untrained, monkeypatch):
    saved = sweeps._run
    monkeypatch.setattr(sweeps, "_run", lambda e, plan, f: _interrupted() if untrained else saved(e, plan, f))
    assert run("sweep", "--config", sweep)[0] == 130
    assert list(by_name(tmp_path / "sweep")) == NAMES[:1]
    monkeypatch.setattr(sweeps, "_run", saved)
    assert run("sweep", "--config", sweep)[0] == 0
    assert untrained == NAMES


def _interrupted():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_each_seed_is_a_run_with_seeds_of_its_own(run, sweep, tmp_path, untrained):
    assert run("sweep", "--config", sweep, "--config.seeds=(0,3)")[0] == 0
    assert untrained == ["hyena_x 50 %", "hyena_x 50 %, seed 3", "mlp ratio 3", "mlp ratio 3, seed 3"]
    runs = json.loads((tmp_path / "sweep" / "results.json").read_text())["runs"]
    assert len({run["identity"] for run in runs}) == 4
    assert len((tmp_path / "sweep" / "table.md").read_text().splitlines()) == 2 + 1 + 2
    assert len(list((tmp_path / "sweep").glob("samples-*.png"))) == 1 + 4
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "seed 3" not in page, "pictures of the first seed only"


def test_every_edit_is_checked_before_any_work(refused, sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "draw", lambda *args, **kwargs: pytest.fail("work was done"))
    sweep.write_text(sweep.read_text().replace("blocks[*].mlp=3", "blocks[9].mlp=3"))
    assert "mlp ratio 3: " in refused("sweep", "--quiet", "--config", sweep)
    assert "variants['a'].repalce: unknown key" in refused(
        "sweep", "--config", sweep, "--config.variants={'a':{'repalce':1}}"
    )
    assert "seeds" in refused("sweep", "--quiet", "--config", sweep, "--config.seeds=(1,1)")
    assert not (tmp_path / "sweep").exists()


def test_a_broken_record_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"runs": [{"variant": "x"}]}')
    with pytest.raises(BadInput, match=r"results\.json: .*remove it to start over"):
        sweeps.read_runs(tmp_path / "results.json")
    assert sweeps.read_runs(tmp_path / "none.json") == {}
