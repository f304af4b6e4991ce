"""Undoing grafts: the original comes back as the same objects."""

import jax
import pytest

from graftax.errors import BadInput
from graftax.models import Meta, Model
from graftax.surgery import (
    apply_edit,
    compose,
    drop,
    graft,
    hybrid,
    inverse,
    lora,
    parallel,
    parallel_pairs,
    replace,
    resize,
    skip,
    tie,
)
from graftax.testing import assert_same_leaves, random_params, tiny_spec

SPEC = tiny_spec()
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)), Meta(source="dit.pt", sha256="ab12"))
RNG = jax.random.key(7)
EDITS = (
    replace("blocks[1::2].mixer", "hyena_x"),
    replace("blocks[*].mixer", "mha"),
    hybrid({"hyena_x": [0, 1], "swa": [2]}),
    resize("blocks[75%].mlp", 3),
    skip(1, 3),
    compose(replace("blocks[3].mixer", "swa", init="transplant"), parallel(0, 2)),
)


def finetuned(model):
    """Every leaf another object with other values."""
    return model.replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_the_inverse_of_a_graft_is_the_original(edit):
    student = graft(MODEL, edit, RNG)
    back = graft(student, inverse(MODEL), RNG)
    assert back.spec == SPEC
    assert_same_leaves(MODEL.params, back.params)
    assert back.meta.sites == ()
    assert back.meta.edits == (str(edit), "inverse(original)")


def test_of_several_grafts_and_within_a_composition():
    student = MODEL
    for edit in EDITS[:4]:
        student = graft(student, edit, RNG)
    assert_same_leaves(MODEL.params, graft(student, compose(inverse(MODEL), skip(0, 1)), RNG).params)


def test_selected_sites_only():
    student = graft(MODEL, compose(hybrid({"hyena_x": [1, 3], "swa": [2]}), resize("blocks[1].mlp", 3), skip(0, 1)), RNG)
    back, report = apply_edit(student, inverse(MODEL, "blocks[hyena_x].mixer"), RNG)
    assert [block["mixer"].kind for block in back.spec.blocks] == ["mha", "mha", "swa", "mha"]
    assert back.spec.program == student.spec.program
    assert back.meta.sites == ("blocks[1].mlp", "blocks[2].mixer")
    assert_same_leaves(student.params, back.params, ["blocks/01/mixer", "blocks/03/mixer"])
    assert_same_leaves(MODEL.params, back.params, ["blocks/01/mlp", "blocks/02/mixer"])
    assert [str(site) for site in report.sites] == ["blocks[1].mixer", "blocks[3].mixer"]
    assert str(report).startswith("blocks[1,3].mixer   hyena_x(kernel=4) -> mha, new weights (2 sites)\n")


def test_what_was_fine_tuned_outside_the_operators_stays():
    student = finetuned(graft(MODEL, replace("blocks[1].mixer", "hyena_x"), RNG))
    back = graft(student, inverse(MODEL), RNG)
    assert back.spec == SPEC
    operators = [f"blocks/0{i}/{slot}" for i in range(4) for slot in ("adaln", "mixer", "mlp")]
    assert_same_leaves(student.params, back.params, operators)
    for i in range(4):
        for slot in ("adaln", "mixer", "mlp"):
            assert_same_leaves(MODEL.params["blocks"][f"0{i}"][slot], back.params["blocks"][f"0{i}"][slot])


def test_scions_of_the_original_stay_scions():
    first = graft(MODEL, replace("blocks[1].mixer", "hyena_x"), RNG)
    second = graft(first, replace("blocks[1,2].mixer", "swa"), RNG)
    assert graft(second, inverse(first), RNG).meta.sites == ("blocks[1].mixer",)
    assert graft(second, inverse(first, "blocks[1].mixer"), RNG).meta.sites == ("blocks[1].mixer", "blocks[2].mixer")


@pytest.mark.parametrize("edit", [drop(1), tie((0, 2)), parallel_pairs(), lora("blocks[*].mixer", rank=2)], ids=str)
def test_restructured_models_come_back(edit):
    student = finetuned(graft(MODEL, edit, RNG))
    back = graft(student, inverse(MODEL), RNG)
    assert back.spec == SPEC
    fresh = graft(graft(MODEL, edit, RNG), inverse(MODEL), RNG)
    assert_same_leaves(MODEL.params, fresh.params)
    assert_same_leaves(student.params["final"], back.params["final"])


def test_blocks_numbered_anew_do_not_lend_their_conditioning():
    """After drop(1) the student's block 1 is what block 2 was."""
    back = graft(finetuned(graft(MODEL, drop(1), RNG)), inverse(MODEL), RNG)
    assert_same_leaves(MODEL.params["blocks"], back.params["blocks"])
    with pytest.raises(BadInput, match="depth is 3, but the original has 4"):
        graft(graft(MODEL, drop(1), RNG), inverse(MODEL, "blocks[0].mixer"), RNG)


def test_adapters_at_restored_sites_go():
    student = graft(graft(MODEL, replace([1], "hyena_x"), RNG), lora(["blocks[1,2].mixer", "final"], rank=2), RNG)
    back = graft(student, inverse(MODEL, "blocks[1].mixer"), RNG)
    assert not any(adapter.path.startswith("blocks/01/") for adapter in back.spec.adapters)
    assert {adapter.path for adapter in back.spec.adapters} < {adapter.path for adapter in student.spec.adapters}
    assert_same_leaves(student.params, back.params, ["blocks/01/mixer", "lora/blocks/01/mixer"])
    assert_same_leaves(MODEL.params["blocks"]["01"], back.params["blocks"]["01"])


def test_another_model_is_refused():
    wider = tiny_spec(hidden_size=64)
    with pytest.raises(BadInput, match=r"sizes is Sizes\(width=48.*, but the original has Sizes\(width=64"):
        graft(MODEL, inverse(Model(wider, random_params(wider, RNG))), RNG)
    with pytest.raises(BadInput, match=r"blocks\[7\]"):
        graft(MODEL, inverse(MODEL, "blocks[7].mixer"), RNG)
