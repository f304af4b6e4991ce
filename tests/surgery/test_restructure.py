"""Edits of depth: parameters, programs, reports and provenance; a model without a block is the model that skips it."""

import dataclasses

import jax
import numpy as np
import pytest

import graftax
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.merge import mean_merge
from graftax.spec import Step
from graftax.surgery import apply_edit, compose, drop, graft, lora, parallel, parallel_pairs, repeat, replace, skip, tie
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

KEY = jax.random.key(0)
SPEC = tiny_spec(depth=6)
MODEL = Model(SPEC, random_params(SPEC, KEY))
X, T, Y = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32), np.array([7, 700]), np.array([1, 2])


def kinds(model):
    return [block["mixer"].kind for block in model.spec.blocks]


# --- Pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_halve_the_depth_and_start_as_the_mean():
    student, report = apply_edit(MODEL, parallel_pairs(), KEY)
    assert student.spec.program == tuple(Step((2 * j, 2 * j + 1), "project") for j in range(3))
    assert_trees_close(student.params["merges"]["02_03"], mean_merge(SPEC, 2), atol=0)
    assert_same_leaves(MODEL.params, student.params, ["merges"])
    assert student.meta.edits == ("parallel_pairs()",)
    assert student.meta.sites == ()
    mean = graft(MODEL, compose(*(parallel(j, j + 2) for j in range(3))), KEY)
    np.testing.assert_allclose(student(X, T, Y), mean(X, T, Y), atol=1e-5)
    assert report.params[1] - report.params[0] == 3 * (2 * 48 * 48 + 48)
    assert "project(0,1), project(2,3), project(4,5)" in str(report)
    assert "6 new, 0 dropped" in str(report)


def test_part_of_a_program_that_is_reordered():
    spec = SPEC.replace(program=tuple(map(Step, ((5,), (4,), (3,), (2,), (1,), (0,)))))
    student = graft(Model(spec, MODEL.params), parallel_pairs(1, 5), KEY)
    assert student.spec.program == (Step((5,)), Step((4, 3), "project"), Step((2, 1), "project"), Step((0,)))
    assert set(student.params["merges"]) == {"04_03", "02_01"}
    assert student.meta.edits == ("parallel_pairs(1, 5)",)


@pytest.mark.parametrize(
    ("before", "edit", "message"),
    [
        ((), parallel_pairs(1), r"positions \[1, 6\) of 6, expected an even number"),
        ((), parallel_pairs(2, 8), r"positions \[2, 8\) of 6"),
        ((parallel(0, 2),), parallel_pairs(0, 2), "parallel, looped or scaled already"),
        ((repeat(2, 6, block=1),), parallel_pairs(2, 6), r"blocks \(1, 1\) would run as a pair twice"),
        ((), drop(), "got no blocks"),
        ((), drop(6), r"block 6, expected 0\.\.5"),
        ((), drop(*range(6)), "leaves no block"),
        ((skip(0, 5),), drop(5), "leaves no block"),
        ((parallel_pairs(0, 2),), drop(1), r"blocks \(0, 1\) share a learned projection"),
        ((parallel_pairs(0, 2),), tie((1, 2)), r"blocks \(0, 1\) share a learned projection"),
        ((lora("blocks[1].mixer"),), drop(2), r"adapters, expected merge_lora\(\) first"),
    ],
)
def test_impossible_edits_are_refused(before, edit, message):
    model = graft(MODEL, compose(*before), KEY) if before else MODEL
    with pytest.raises(BadInput, match=message):
        graft(model, edit, KEY)


@pytest.mark.parametrize("groups", [((1, 2), (2, 3)), ((1,),), ((0, 1, 0),)])
def test_groups_that_cannot_be_tied(groups):
    with pytest.raises(BadInput, match=r"tie\(\(.*: expected groups of two or more blocks, each block in one group"):
        tie(*groups)


def test_pairs_are_saved_and_loaded_and_dit_files_cannot_hold_them(tmp_path):
    student = graft(MODEL, parallel_pairs(), KEY)
    graftax.save(student, tmp_path / "student")
    again = graftax.load(tmp_path / "student")
    assert again.spec == student.spec
    assert_trees_close(again.params, student.params, atol=0)
    with pytest.raises(BadInput, match="program"):
        graftax.export(student, tmp_path / "student.pt")


# --- Blocks that go ----------------------------------------------------------------------------------------------------


def test_a_dropped_block_is_a_skipped_one_without_its_weights():
    student, report = apply_edit(MODEL, drop(1, 4), KEY)
    assert (student.spec.depth, student.spec.program) == (4, tuple(Step((i,)) for i in range(4)))
    assert student.params["blocks"]["01"] is MODEL.params["blocks"]["02"]
    np.testing.assert_array_equal(student(X, T, Y), graft(MODEL, compose(skip(4, 5), skip(1, 2)), KEY)(X, T, Y))
    assert report.origin == (0, 2, 3, 5)
    assert not report.new
    assert {path.split("/")[1] for path in report.dropped} == {"01", "04"}
    assert len(report.kept) + len(report.dropped) == len(jax.tree.leaves(MODEL.params))


def test_scions_and_projections_move_with_their_blocks():
    grafted = graft(MODEL, compose(replace("blocks[1,3].mixer", "hyena_x"), parallel_pairs(4, 6)), KEY)
    student, report = apply_edit(grafted, drop(0, 3), KEY)
    assert student.meta.sites == ("blocks[0].mixer",)
    assert kinds(student) == ["hyena_x", "mha", "mha", "mha"]
    assert student.spec.program[-1] == Step((2, 3), "project")
    assert student.params["merges"]["02_03"] is not None
    assert not report.new


def test_parallel_steps_lose_the_block():
    student = graft(graft(MODEL, parallel(0, 3), KEY), drop(1), KEY)
    assert student.spec.program[0] == Step((0, 1))


@pytest.mark.slow
def test_tied_blocks_run_one_set_of_weights():
    student, report = apply_edit(MODEL, tie((1, 3), (4, 5)), KEY)
    assert student.spec.program == tuple(Step((i,)) for i in (0, 1, 2, 1, 3, 3))
    blocks = MODEL.params["blocks"]
    copied = {**MODEL.params, "blocks": {**blocks, "03": blocks["01"], "05": blocks["04"]}}
    np.testing.assert_allclose(student(X, T, Y), Model(SPEC, copied)(X, T, Y), atol=1e-5)
    assert student.meta.edits == ("tie((1, 3), (4, 5))",)
    assert report.origin == (0, 1, 2, 4)


def test_joined_reports_follow_the_blocks():
    """What a replacement before and one after a drop changed, in the numbers of the end."""
    edits = [replace("blocks[1,4].mixer", "hyena_x"), drop(0, 1), replace("blocks[0].mlp", "mlp"), drop(1)]
    spec, params, report = compose(*edits)(SPEC, MODEL.params, KEY)
    assert spec.depth == 3
    assert report.origin == (2, 4, 5)
    assert [str(site) for site in report.sites] == ["blocks[0].mlp", "blocks[1].mixer"]
    changed = {"blocks/02/mlp", "blocks/04/mixer"}
    assert {path.rsplit("/", 2)[0] for path in report.dropped if path[7:9] in ("02", "04")} == changed
    assert len(report.kept) + len(report.new) == len(jax.tree.leaves(params))
    assert dataclasses.replace(report, before=spec).after == spec
