"""`graftax plan`: from weights alone and with a recipe's data, configs that run, what it refuses."""

import json

import pytest

from graftax import api

DEPTH = 2


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
