"""`graftax replay`: the recipe of one model done to another, without its trainings."""

import jax
import numpy as np
import pytest

from graftax import api
from graftax.models import Model
from graftax.surgery import parse
from graftax.testing import assert_trees_close, random_params, tiny_spec

EDITS = ("replace(blocks[50%].mixer, hyena_x(kernel=4))", "drop(0)", "replace(blocks[*].adaln, adaln_shared)")


@pytest.mark.slow
def test_another_model_gets_the_same_edits(run, recipe, teacher, tmp_path):
    flags = [f"--edit={edit}" for edit in EDITS]
    assert run("graft", teacher, *flags, "--out", tmp_path / "student")[0] == 0
    student = api.load(tmp_path / "student")
    assert run("replay", tmp_path / "student", teacher, "--out", tmp_path / "again")[0] == 0
    again = api.load(tmp_path / "again")
    assert again.spec == student.spec
    assert again.meta.sites == student.meta.sites
    assert_trees_close(again.params, student.params, rtol=0, atol=0)  # the same program on the same weights and seed

    # A model of other sizes and other weights.
    spec = tiny_spec(in_channels=2, depth=6)
    api.save(Model(spec, random_params(spec, jax.random.key(1))), tmp_path / "deeper")
    code, out, _ = run("replay", tmp_path / "student", tmp_path / "deeper", "--out", tmp_path / "other")
    assert code == 0
    assert "mha -> hyena_x(kernel=4)" in out
    other = api.load(tmp_path / "other")
    assert other.spec.depth == 5
    assert [block["mixer"].kind for block in other.spec.blocks] == ["hyena_x", "mha"] * 2 + ["hyena_x"]
    assert other.meta.edits == student.meta.edits


@pytest.mark.slow
def test_trainings_are_not_repeated(run, recipe, teacher, tmp_path):
    for verb in ("graft", "distill"):
        assert run(verb, "--config", recipe)[0] == 0
    assert run("replay", tmp_path / "run" / "distilled", teacher, "--out", tmp_path / "again")[0] == 0
    raw, again, trained = (api.load(tmp_path / name) for name in ("run/grafted", "again", "run/distilled"))
    assert again.spec == raw.spec == trained.spec
    kernels = [model.params["blocks"]["01"]["mixer"]["in_proj"]["kernel"] for model in (raw, again, trained)]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])


def test_refused(refused, teacher, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "nowhere" in refused("replay", tmp_path / "nowhere", teacher, *out)
    assert "no edits" in refused("replay", teacher, teacher, *out)
    small = tiny_spec(in_channels=1, depth=1, num_classes=3)
    edited = api.graft(api.load(teacher), parse("drop(3)"), None)
    api.save(edited, tmp_path / "edited")
    api.save(Model(small, random_params(small, jax.random.key(0))), tmp_path / "small")
    assert "block 3" in refused("replay", tmp_path / "edited", tmp_path / "small", *out)
    assert not (tmp_path / "out").exists()
