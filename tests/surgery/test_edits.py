"""Exchanging operators: what changes, what stays the same object, where weights come from."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import forward
from graftax.spec import op
from graftax.surgery import check, compose, drop, parallel_pairs, replace, resize, skip
from graftax.surgery.replace import weighed, with_importance
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

SPEC = tiny_spec()
PARAMS = random_params(SPEC, jax.random.key(0))
RNG = jax.random.key(7)
EXCHANGE = importlib.import_module("graftax.surgery.replace")  # the package has a function of that name
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
T = jnp.array([3.0, 700.0])
Y = {"y": jnp.array([1, 10])}


def output(spec, params):
    return jax.jit(lambda params: forward(spec, params, X, T, Y, plan="unroll")[0])(params)


@functools.cache
def teacher_output():
    return output(SPEC, PARAMS)


def test_replace_changes_the_chosen_sites_only():
    spec, params, report = replace("blocks[1::2].mixer", "hyena_x", kernel=3)(SPEC, PARAMS, RNG)
    check(spec, params)
    assert [str(block["mixer"]) for block in spec.blocks] == ["mha", "hyena_x(kernel=3)"] * 2
    assert [block["mlp"] for block in spec.blocks] == [block["mlp"] for block in SPEC.blocks]
    assert spec.replace(blocks=SPEC.blocks) == SPEC
    assert_same_leaves(PARAMS, params, ["blocks/01/mixer", "blocks/03/mixer"])
    assert report.sites == tuple(s for s in report.sites if s.slot == "mixer")
    assert [site.block for site in report.sites] == [1, 3]


def test_the_parameters_given_are_not_touched():
    before = jax.tree.map(lambda leaf: leaf, PARAMS)
    replace("blocks[*].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    assert_same_leaves(before, PARAMS)


def test_self_grafting_draws_new_weights_for_mixers_only():
    spec, params, report = replace("blocks[*].mixer", "mha")(SPEC, PARAMS, RNG)
    assert spec == SPEC
    assert_same_leaves(PARAMS, params, [f"blocks/{i:02d}/mixer" for i in range(4)])
    for i in range(4):
        old, new = PARAMS["blocks"][f"{i:02d}"]["mixer"], params["blocks"][f"{i:02d}"]["mixer"]
        assert all(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    assert len(report.new) == len(report.dropped) == 16
    assert report.new == report.dropped


def test_random_weights_have_pytorch_default_distribution():
    _, params, _ = replace("blocks[2].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    mixer = params["blocks"]["02"]["mixer"]
    for layer, fan_in in (("in_proj", 48), ("out_proj", 48), ("short_filter", 4)):
        for leaf in mixer[layer].values():
            bound = fan_in**-0.5
            assert isinstance(leaf, jax.Array)
            assert leaf.dtype == jnp.float32
            assert 0.9 * bound < float(abs(leaf).max()) <= bound
            assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.15)


def test_a_sites_weights_do_not_depend_on_the_other_sites():
    _, alone, _ = replace("blocks[3].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    _, among, _ = replace("blocks[*].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    assert_trees_close(alone["blocks"]["03"], among["blocks"]["03"], rtol=0, atol=0)
    one, other = (among["blocks"][key]["mixer"]["in_proj"]["kernel"] for key in ("02", "03"))
    assert not np.array_equal(one, other)
    _, later, _ = replace("blocks[3].mixer", "hyena_x")(SPEC, PARAMS, jax.random.key(8))
    assert not np.array_equal(later["blocks"]["03"]["mixer"]["in_proj"]["kernel"], other)


def test_every_site_has_a_key_of_its_own(monkeypatch):
    """Both slots of a block too: operators there may name their layers alike."""
    keys, fresh = [], EXCHANGE._fresh
    monkeypatch.setattr(EXCHANGE, "_fresh", lambda operator, key: keys.append(key) or fresh(operator, key))
    compose(replace("blocks[*].mixer", "mha"), replace("blocks[*].mlp", "mlp"))(SPEC, PARAMS, RNG)
    assert len(keys) == 8
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8


def test_one_compilation_serves_all_sites():
    spec = tiny_spec(depth=6, hidden_size=40)  # a size that no other test has compiled
    params = random_params(spec, RNG)
    before = EXCHANGE._fresh._cache_size()
    replace("blocks[*].mixer", "hyena_x")(spec, params, RNG)
    assert EXCHANGE._fresh._cache_size() == before + 1


@pytest.mark.slow
def test_transplanted_window_keeps_the_objects():
    spec, params, report = replace("blocks[*].mixer", "swa", init="transplant", window=4)(SPEC, PARAMS, RNG)
    assert_same_leaves(PARAMS, params)
    assert report.new == report.dropped == ()
    assert [site.block for site in report.sites] == [0, 1, 2, 3]
    assert not np.allclose(output(spec, params), teacher_output(), atol=1e-3)  # 16 tokens, a window of 9 sees less


def test_transplanted_window_over_all_tokens_is_the_teacher():
    edit = replace("blocks[1,2].mixer", "swa", init="transplant", window=SPEC.tokens)
    spec, params, _ = edit(SPEC, PARAMS, RNG)
    np.testing.assert_allclose(output(spec, params), teacher_output(), atol=2e-5)


def test_transplant_there_and_back_is_the_identity():
    there = replace("blocks[*].mixer", "swa", init="transplant")
    back = replace("blocks[*].mixer", "mha", init="transplant")
    spec, params, report = compose(there, back)(SPEC, PARAMS, RNG)
    assert spec == SPEC
    assert_same_leaves(PARAMS, params)
    assert report.sites == ()


def test_impossible_transplants_are_refused():
    with pytest.raises(BadInput, match=r"blocks\[2\]\.mixer: nothing of mha fits hyena_x\(kernel=4\)"):
        replace("blocks[2].mixer", "hyena_x", init="transplant")(SPEC, PARAMS, RNG)
    with pytest.raises(BadInput, match=r"blocks\[0\]\.mlp: fewer neurons, and importance is none, expected \(192,\)"):
        resize("blocks[0].mlp", 3, init="transplant")(SPEC, PARAMS, RNG)
    with pytest.raises(BadInput, match=r"blocks\[1\]\.mlp: .* importance is shape \(144,\), expected \(192,\)"):
        resize("blocks[1].mlp", 3, init="transplant", importance={"blocks[1].mlp": np.ones(144)})(SPEC, PARAMS, RNG)


def test_a_narrower_mlp_keeps_its_most_important_neurons():
    importance = np.random.default_rng(0).random(192)
    edit = resize("blocks[1].mlp", 3, init="transplant", importance={"blocks[1].mlp": importance})
    spec, params, _ = edit(SPEC, PARAMS, RNG)
    check(spec, params)
    kept = np.flatnonzero(importance >= np.sort(importance)[-144])
    old, new = PARAMS["blocks"]["01"]["mlp"], params["blocks"]["01"]["mlp"]
    np.testing.assert_array_equal(new["fc1"]["kernel"], old["fc1"]["kernel"][:, kept])
    np.testing.assert_array_equal(new["fc1"]["bias"], old["fc1"]["bias"][kept])
    np.testing.assert_array_equal(new["fc2"]["kernel"], old["fc2"]["kernel"][kept])
    assert_same_leaves(PARAMS, params, ["blocks/01/mlp/fc1", "blocks/01/mlp/fc2/kernel"])


@pytest.mark.parametrize("ratio", [4.5, pytest.param(9, marks=pytest.mark.slow)])
def test_a_wider_mlp_computes_the_same(ratio):
    spec, params, _ = resize("blocks[*].mlp", ratio, init="transplant")(SPEC, PARAMS, RNG)
    check(spec, params)
    np.testing.assert_allclose(output(spec, params), teacher_output(), atol=2e-5)


def test_resize_changes_the_ratio():
    spec, params, _ = resize("blocks[deep:50%].mlp", ratio=3)(SPEC, PARAMS, RNG)
    check(spec, params)
    assert [block["mlp"].option("ratio") for block in spec.blocks] == [4.0, 4.0, 3.0, 3.0]
    assert params["blocks"]["03"]["mlp"]["fc1"]["kernel"].shape == (48, 144)
    assert_same_leaves(PARAMS, params, ["blocks/02/mlp", "blocks/03/mlp"])


def test_block_numbers_take_the_operators_slot():
    by_number, _, _ = replace([3, 1], "hyena_x")(SPEC, PARAMS, RNG)
    by_name, _, _ = replace("blocks[1,3].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    assert by_number == by_name
    assert [block["mlp"].option("ratio") for block in resize(0, 2)(SPEC, PARAMS, RNG)[0].blocks] == [2.0, 4.0, 4.0, 4.0]


def test_two_edits_equal_one():
    one = replace("blocks[1,3].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    two = compose(replace("blocks[1].mixer", "hyena_x"), replace("blocks[3].mixer", "hyena_x"))(SPEC, PARAMS, RNG)
    assert two[0] == one[0]
    assert_trees_close(two[1], one[1], rtol=0, atol=0)
    assert two[2] == one[2]


def test_an_edit_can_be_run_again():
    edit = replace(iter([1, 3]), "hyena_x")
    first, second = edit(SPEC, PARAMS, RNG), edit(SPEC, PARAMS, RNG)
    assert first[0] == second[0]
    assert_trees_close(first[1], second[1], rtol=0, atol=0)


def test_numpy_leaves_are_shared_too():
    params = jax.tree.map(np.asarray, PARAMS)
    _, after, _ = replace("blocks[1].mixer", "hyena_x")(SPEC, params, RNG)
    assert_same_leaves(params, after, ["blocks/01/mixer"])


def test_the_grafted_model_runs():
    spec, params, _ = compose(replace("blocks[50%].mixer", "hyena_x"), resize("blocks[0].mlp", 3))(SPEC, PARAMS, RNG)
    out = output(spec, params)
    assert out.shape == (2, 8, 8, 8)
    assert np.isfinite(out).all()
    assert not np.allclose(out, teacher_output(), atol=1e-2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: replace("blocks[0].mixer", "rwkv"), "'rwkv': not known"),
        (lambda: replace("blocks[0].mixer", "hyena_x", taps=4), "'taps': not known"),
        (lambda: replace("blocks[0].mixer", "hyena_x", kernel=0), "kernel: got 0"),
        (lambda: replace("blocks[0].mixer", "hyena_x", kernel="4"), "kernel='4': expected int"),
        (lambda: replace("blocks[0].mlp", "hyena_x"), "has the role mixer, expected one with the role channel"),
        (lambda: replace("blocks[0].mixer", "mlp"), "has the role channel, expected one with the role mixer"),
        (lambda: replace("blocks[0].mixer", "mha", init="zeros"), "init: got 'zeros'"),
        (lambda: replace("blocks[9].mixer", "mha"), "'9' selects no block"),
        (lambda: resize("blocks[0].mixer", 3), r"blocks\[0\].mixer: holds mha, which has no ratio"),
        (lambda: resize("blocks[0].mlp", 0), "ratio: got 0"),
        (lambda: resize("blocks[0].mlp", 3, init="copy"), "init: got 'copy'"),
        (lambda: resize("blocks[0].mlp", True), "ratio True, expected a number"),
        (lambda: replace([], "mha"), "empty, expected at least one site"),
        (lambda: compose(), "compose: got no edits"),
        (lambda: compose(replace(0, "mha"), "skip(1, 2)"), r"compose: got 'skip\(1, 2\)', expected edits"),
    ],
)
def test_impossible_edits_are_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        edit()(SPEC, PARAMS, RNG)


def test_resize_keeps_other_options():
    mlp = op("mlp", other=1, ratio=4.0)
    spec = SPEC.replace(blocks=(SPEC.blocks[0].with_op("mlp", mlp), *SPEC.blocks[1:]))
    with pytest.raises(BadInput, match="'other': not known"):  # it reached the operator: nothing was left out
        resize("blocks[0].mlp", 3)(spec, PARAMS, RNG)


def test_edits_that_draw_nothing_need_no_key():
    for edit in (skip(1, 2), drop(3), parallel_pairs(), compose(skip(0, 1), drop(2))):
        assert not edit.draws
        assert edit(SPEC, PARAMS)[0] == edit.on(SPEC)
    for edit in (replace(0, "mha"), compose(skip(0, 1), resize(0, 2))):
        assert edit.draws
        with pytest.raises(BadInput, match="draws weights, expected rng"):
            edit(SPEC, PARAMS)


def test_importance_reaches_the_edits_that_want_it():
    narrower = resize("blocks[1,2].mlp", 3, init="transplant")
    edit = compose(drop(0), narrower, resize("blocks[0].mlp", 6, init="transplant"), resize("blocks[2].mlp", 2))
    assert [str(site) for site in weighed(edit, SPEC)] == ["blocks[1].mlp", "blocks[2].mlp"]
    importance = {f"blocks[{i}].mlp": np.arange(192.0) for i in (1, 2)}
    informed = with_importance(edit, importance)
    assert informed == edit  # data are no part of what an edit is
    _, params, _ = informed(SPEC, PARAMS, RNG)
    old = PARAMS["blocks"]["02"]["mlp"]["fc1"]["bias"]
    np.testing.assert_array_equal(params["blocks"]["01"]["mlp"]["fc1"]["bias"], old[-144:])


def test_texts():
    assert str(replace("blocks[1::2].mixer", "hyena_x")) == "replace(blocks[1::2].mixer, hyena_x(kernel=4), init=random)"
    assert str(replace([1, 3], "swa", init="transplant")) == "replace([1, 3], swa(window=4), init=transplant)"
    assert str(resize("blocks[*].mlp", 3)) == "resize(blocks[*].mlp, ratio=3.0, init=random)"
    edit = compose(replace(0, "mha"), resize(0, 2))
    assert str(edit) == "compose(replace(0, mha(), init=random), resize(0, ratio=2.0, init=random))"
