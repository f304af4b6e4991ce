"""`graftax plan`: from weights alone and with a recipe's data, configs that run, what it refuses."""

import json
import re

import pytest

from graftax import api

DEPTH = 2

CHECKED = """
def get_config():
    return {{
        "workdir": {workdir!r}, "teacher": {teacher!r}, "kind": "demo", "graft": {{}}, "others": (),
        "judging": {{"classifier": {judge!r}, "judged": 12, "shown": 1, "sample": {{"steps": 2, "batch_size": 12}}}},
        "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "distill": {{"settings": {{"steps": 2, "learning_rate": 1e-3}}, "batch_size": 8}},
        "finetune": {{"loop": {{"steps": 2}}, "batch_size": 8, "optimiser": {{"learning_rate": 1e-3, "warmup_steps": 0}}}},
    }}
"""


def test_refuses(refused, run, teacher, tmp_path):
    assert "params: got 2, expected more than 0" in refused("plan", teacher, "--params=2", "--out", tmp_path / "out")
    assert "without --config" in refused("plan", teacher, "--flops=0.9", "--check=1", "--out", tmp_path / "out")
    assert "images: got 0" in refused("plan", teacher, "--flops=0.9", "--images=0", "--out", tmp_path / "out")
    assert run("plan", teacher)[0] == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_plan(run, refused, recipe, teacher, tmp_path):
    """Two operators on data: the configs go through graft and stage 1."""
    out = tmp_path / "out"
    operators = ("--operator=affine", "--operator=mlp(ratio=2)")
    command = ("plan", teacher, "--flops=0.95", *operators, "--config", recipe, "--rounds=1", "--images=8", "--out", out)
    code, text, err = run(*command, "--json")
    assert code == 0, (text, err)
    record = json.loads(text)
    assert len(record["measured"]) == len(record["front"]) >= 1
    assert "6 steps of stage 1" in record["harm"]
    assert "exists already" in refused(*command)
    for verb in ("graft", "distill"):
        code, text, err = run(verb, "--config", out / "plan_1.py")
        assert code == 0, (text, err)
    assert api.load(out / "plan_1" / "distilled").meta.sites


@pytest.mark.slow
def test_check(run, teacher, data, judge, tmp_path):
    """What was considered is fine-tuned, and its rank correlation with harm is stated."""
    paths = {"workdir": tmp_path / "plan", "teacher": teacher, "judge": judge, "data": data}
    path = tmp_path / "checked.py"
    path.write_text(CHECKED.format(**{key: str(value) for key, value in paths.items()}))
    operators = ("--operator=affine", "--operator=affine_mlp", "--operator=mlp(ratio=2)")
    code, out, err = run(
        "plan", teacher, "--flops=0.97", *operators, "--device=v5e", "--config", path, "--images=8", "--check=1"
    )
    assert code == 0, (out, err)
    assert re.search(r"Rank correlation of harm with the loss -?\d\.\d\d, with Fréchet .*1 seeds, 2 \+ 2 steps", out)
    record = json.loads((tmp_path / "plan" / "plan.json").read_text())
    runs = json.loads((tmp_path / "plan" / "check" / "results.json").read_text())["runs"]
    assert len(runs) == len({tuple(one["edits"]) for one in record["considered"]}) >= 3
