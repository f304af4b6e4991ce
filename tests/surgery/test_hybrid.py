"""Hybrid plans: several operators in one edit."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import op
from graftax.surgery import compose, graft, hybrid, replace, resize
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

SPEC = tiny_spec()
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = jax.random.key(7)


def test_operators_of_both_slots_in_one_edit():
    plan = {"hyena_x": [1, 3], op("swa", window=2): 2, op("mlp", ratio=3.0): "75%"}
    student = graft(MODEL, hybrid(plan), RNG)
    assert [str(block["mixer"]) for block in student.spec.blocks] == [
        "mha",
        "hyena_x(kernel=4)",
        "swa(window=2)",
        "hyena_x(kernel=4)",
    ]
    assert [block["mlp"].option("ratio") for block in student.spec.blocks] == [4, 3, 3, 3]
    changed = [f"blocks/0{i}/{slot}" for i in (1, 2, 3) for slot in ("mixer", "mlp")]
    assert_same_leaves(MODEL.params, student.params, changed)
    assert student.meta.sites == tuple(f"blocks[{i}].{slot}" for i in (1, 2, 3) for slot in ("mixer", "mlp"))


def test_weights_are_those_of_single_replacements():
    plan = hybrid({op("hyena_x", kernel=3): "1::2", "mlp": ["blocks[0].mlp", 2]})
    single = compose(replace("blocks[1::2].mixer", "hyena_x", kernel=3), replace("blocks[0,2].mlp", "mlp"))
    (spec, params, report), expected = plan(SPEC, MODEL.params, RNG), single(SPEC, MODEL.params, RNG)
    assert (spec, report) == (expected[0], expected[2])
    assert_trees_close(params, expected[1], rtol=0, atol=0)


def test_a_narrower_mlp_is_a_transplant_by_importance():
    hidden = SPEC.blocks[1]["mlp"].option("ratio") * SPEC.width
    settings = {"init": "transplant", "importance": {"blocks[1].mlp": np.random.default_rng(0).random(int(hidden))}}
    plan, single = hybrid({op("mlp", ratio=3.0): [1]}, **settings), resize("blocks[1].mlp", 3.0, **settings)
    assert_trees_close(plan(SPEC, MODEL.params, RNG)[1], single(SPEC, MODEL.params, RNG)[1], rtol=0, atol=0)


def test_the_same_operator_with_different_options():
    student = graft(MODEL, hybrid({op("swa", window=1): [0], op("swa", window=3): [1]}, init="transplant"), RNG)
    assert [block["mixer"].option("window") for block in student.spec.blocks] == [1, 3, None, None]
    assert_same_leaves(MODEL.params, student.params)


def test_selectors_are_read_on_the_model_before_the_edit():
    student = graft(MODEL, hybrid({"hyena_x": "0,1", "swa": "-1"}), RNG)
    swapped = graft(student, hybrid({"mha": "hyena_x", "hyena_x": "mha"}), RNG)
    assert [block["mixer"].kind for block in swapped.spec.blocks] == ["mha", "mha", "hyena_x", "swa"]


def test_the_edit_says_what_it_does():
    edit = hybrid({"hyena_x": [1, 3], op("mlp", ratio=3.0): "50%"}, init="random")
    assert str(edit) == "hybrid(hyena_x(kernel=4): [1, 3], mlp(ratio=3.0): blocks[50%].channel, init=random)"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "no operators"),
        (
            {"hyena_x": [1, 3], "swa": "blocks[2:].mixer"},
            r"blocks\[3\].mixer is given both hyena_x\(kernel=4\) and swa\(window=4\), expected one",
        ),
        ({"hyena_x": [1], op("hyena_x", kernel=3): [1]}, r"both hyena_x\(kernel=4\) and hyena_x\(kernel=3\)"),
        ({"bagpipe": [1]}, "'bagpipe': not known"),
        ({op("swa", colour=1): [1]}, "'colour': not known"),
        ({op("hyena_x", kernel=0): [1]}, "kernel: got 0"),
        ({"mlp": ["blocks[1].mixer"]}, "'mlp' has the role channel, expected one with the role mixer"),
        ({"swa": [9]}, r"blocks\[9\].mixer"),
        ({"swa": []}, "empty"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(BadInput, match=message):
        graft(MODEL, hybrid(plan), RNG)
