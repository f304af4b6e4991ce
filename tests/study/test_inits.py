"""Initialisations through the verbs: transplants that need data, least squares before stage 1, and their comparison."""

import json

import jax
import numpy as np
import pytest

from graftax import api
from graftax.evaluate.score import Score
from graftax.study import experiment
from graftax.study.experiment import Judged

DEPTH = 2
INITS = """
def get_config():
    narrow = {{"edits": ("resize(blocks[1].mlp, 2, init=transplant)",), "calibration": 1}}
    return {{
        "workdir": {workdir!r}, "teacher": {teacher!r}, "kind": "inits",
        "judging": {{"classifier": {judge!r}, "judged": 12, "shown": 1, "sample": {{"steps": 2, "batch_size": 12}}}},
        "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "starts": {{"kept": narrow, "kept, fitted": {{**narrow, "least_squares": 4}}}},
        "distill": {{"settings": {{"steps": 2, "learning_rate": 1e-5}}, "batch_size": 16, "eval_every": 1}},
        "finetune": {{"loop": {{"steps": 1}}}},
    }}
"""


@pytest.fixture
def inits(tmp_path, teacher, judge, data):
    """A config file of two starts."""
    paths = {"workdir": tmp_path / "inits", "teacher": teacher, "judge": judge, "data": data}
    path = tmp_path / "inits.py"
    path.write_text(INITS.format(**{key: str(value) for key, value in paths.items()}))
    return path


@pytest.mark.slow
def test_starts_are_compared_once(run, refused, inits, tmp_path, monkeypatch):
    asked = []  # sampling takes most of the time

    def judge(self, name, model, title):
        asked.append((name, title))
        return Judged(title, np.zeros((12, 8, 8, 1), np.uint8), Score({"accuracy": 0.5, "frechet": 0.1}, 12), 0.2)

    monkeypatch.setattr(experiment.Experiment, "judge", judge)
    code, out, err = run("inits", "--config", inits)
    assert code == 0, err
    rows = {row["start"]: row for row in json.loads((tmp_path / "inits" / "results.json").read_text())["rows"]}
    assert list(rows) == ["kept", "kept, fitted"]
    for row in rows.values():
        assert list(row["errors"]) == ["0", "1", "2"]
        assert row["before"] == row["after"] == {"accuracy": 0.5, "frechet": 0.1, "count": 12, "loss": 0.2}
    assert asked == [(name, f"{when} stage 1") for name in rows for when in ("before", "after")]
    assert rows["kept, fitted"]["errors"]["0"] < 0.95 * rows["kept"]["errors"]["0"]
    table = (tmp_path / "inits" / "table.md").read_text()
    assert table in out
    assert f"| kept | {rows['kept']['errors']['0']:.3f} | {rows['kept']['errors']['2']:.3f} | 50.0%, 0.1 |" in table

    code, again, _ = run("inits", "--config", inits)
    assert code == 0
    assert table in again
    assert len(asked) == 4, "finished rows are not measured again"
    assert "has its own least_squares" in refused(
        "inits", "--quiet", "--config", inits, "--config.distill.settings.calibration=1"
    )


def test_transplants_that_need_data(run, refused, recipe, tmp_path, teacher):
    argv = ("graft", teacher, "--edit=resize(blocks[0].mlp, 3, init=transplant)", "--out", tmp_path / "out")
    assert "looks at their neurons on data" in refused(*argv)
    overrides = ("edits=resize(blocks[0].mlp, 3, init=transplant)", "calibration=1")
    assert run("graft", "--config", recipe, *(f"--config.graft.{text}" for text in overrides))[0] == 0
    folders = teacher, tmp_path / "run" / "grafted"
    old, new = (api.load(folder).params["blocks"]["00"]["mlp"]["fc1"]["bias"] for folder in folders)
    assert new.shape == (96,)
    assert set(np.asarray(new).tolist()) < set(np.asarray(old).tolist())


@pytest.mark.slow
def test_stage_1_can_start_with_least_squares(run, recipe, tmp_path):
    assert run("graft", "--config", recipe)[0] == 0
    settings = ("steps=1", "learning_rate=1e-9", "calibration=8")
    code, _, _ = run("distill", "--config", recipe, *(f"--config.distill.settings.{text}" for text in settings))
    assert code == 0
    raw, fitted = (api.load(tmp_path / "run" / name) for name in ("grafted", "distilled"))
    assert fitted.meta.edits[-1] == "distill(steps=1, calibration=8)"
    mixers = [model.params["blocks"]["01"]["mixer"] for model in (raw, fitted)]
    change = {
        name: max(float(abs(x - y).max()) for x, y in zip(*(jax.tree.leaves(m[name]) for m in mixers), strict=True))
        for name in mixers[0]
    }
    assert change["out_proj"] > 0.1
    assert max(change["in_proj"], change["short_filter"]) < 1e-6
