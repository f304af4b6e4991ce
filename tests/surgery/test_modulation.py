"""Grafts of modulations and norms: counts, closed-form fits, shared weights, a vector for every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.dit import variant
from graftax.blocks import Context, slot_of
from graftax.errors import BadInput
from graftax.models import Model, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import count_params, flops
from graftax.models.shared import with_shared
from graftax.models.stack import apply_stack
from graftax.ops.modulation import Activated
from graftax.spec import op
from graftax.surgery import apply_edit, compose, graft, inverse, replace
from graftax.surgery.replace import CONDITIONS, conditions, modulation_at
from graftax.surgery.select import Site
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

D, DEPTH = 8, 4
SPEC = tiny_spec(depth=DEPTH, hidden_size=D, num_heads=2)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = jax.random.key(7)
X = np.random.default_rng(0).standard_normal((3, 8, 8, 4), np.float32)
T, Y = np.array([5, 400, 990]), np.array([0, 4, 10])
FULL = 6 * D * D + 6 * D
"""Parameters of a full modulation."""


def model_where_kernels_are_equal():
    """Its blocks' modulations differ in their biases alone."""
    blocks = MODEL.params["blocks"]
    kernel = blocks["00"]["adaln"]["kernel"]
    alike = {key: {**block, "adaln": {**block["adaln"], "kernel": kernel}} for key, block in blocks.items()}
    return MODEL.replace(params={**MODEL.params, "blocks": alike})


def assert_same_function(one, other):
    expected = np.asarray(one(X, T, Y))
    np.testing.assert_allclose(other(X, T, Y), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@functools.cache
def sampled():
    """u = silu(vec) over times and classes, (s, d), and the maps of u that the blocks compute."""
    vec = np.asarray(find(SPEC).vectors(SPEC, MODEL.params, CONDITIONS), np.float64)
    return vec / (1 + np.exp(-vec)), [modulation_at(SPEC, MODEL.params, Site(i, "adaln")) for i in range(DEPTH)]


def test_sharing_takes_all_kernels_but_one():
    student, report = apply_edit(MODEL, replace("blocks[*].adaln", "adaln_shared"), RNG)
    assert count_params(SPEC) - count_params(student.spec) == (DEPTH - 1) * FULL - DEPTH * 6 * D
    assert count_params(student.spec) == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    assert flops(SPEC) - flops(student.spec) == (DEPTH - 1) * 12 * D * D
    assert [str(site) for site in report.sites] == [f"blocks[{i}].adaln" for i in range(DEPTH)]
    assert_same_leaves(MODEL.params, student.params, ["shared", *(f"blocks/0{i}/adaln" for i in range(DEPTH))])
    assert student.meta.edits == ("replace(blocks[*].adaln, adaln_shared(), init=transplant)",)


def test_what_sharing_takes_from_xl2():
    spec = variant("DiT-XL/2")
    shared = replace("blocks[*].adaln", "adaln_shared").on(spec)
    total = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(shared)))
    assert 675_129_632 - total == 214_983_936
    assert count_params(shared) == total


def test_shared_weights_and_tables_are_the_least_squares_optimum():
    """Against one regression of all blocks' vectors on u and a number for every block."""
    student = graft(MODEL, replace("blocks[*].adaln", "adaln_shared"), RNG)
    u, wanted = sampled()
    rows = [np.hstack([u, np.tile(np.eye(DEPTH)[i], (len(u), 1))]) for i in range(DEPTH)]
    targets = [u @ kernel + bias for kernel, bias in wanted]
    solution = np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0]
    shared = student.params["shared"]["adaln_shared"]
    np.testing.assert_allclose(shared["kernel"], solution[:D], atol=1e-5)
    for i in range(DEPTH):
        table = student.params["blocks"][f"0{i}"]["adaln"]["table"]
        assert table.shape == (6, D)
        np.testing.assert_allclose(shared["bias"] + table.reshape(-1), solution[D + i], atol=1e-5)


def test_more_blocks_keep_the_shared_weights():
    first = graft(MODEL, replace("blocks[0,1].adaln", "adaln_shared"), RNG)
    second = graft(first, replace("blocks[2,3].adaln", "adaln_shared"), RNG)
    assert_same_leaves(first.params, second.params, ["blocks/02/adaln", "blocks/03/adaln"])
    shared = second.params["shared"]["adaln_shared"]
    u, wanted = sampled()
    for i in (2, 3):
        left = u @ wanted[i][0] + wanted[i][1] - u @ np.asarray(shared["kernel"], np.float64) - np.asarray(shared["bias"])
        table = second.params["blocks"][f"0{i}"]["adaln"]["table"]
        np.testing.assert_allclose(table.reshape(-1), left.mean(0), atol=1e-5)


def test_modulations_that_differ_in_their_biases_share_exactly():
    teacher = model_where_kernels_are_equal()
    assert_same_function(teacher, graft(teacher, replace("blocks[*].adaln", "adaln_shared"), RNG))


def test_back_from_sharing_to_a_full_modulation():
    shared = graft(MODEL, replace("blocks[*].adaln", "adaln_shared"), RNG)
    back = graft(shared, replace("blocks[*].adaln", "adaln"), RNG)
    assert back.spec == SPEC
    assert "shared" not in back.params
    assert_same_function(shared, back)
    half = graft(shared, replace("blocks[0,2].adaln", "adaln"), RNG)
    assert half.params["shared"]["adaln_shared"] is not None
    assert_same_function(shared, half)


def test_a_low_rank_as_large_as_the_width_changes_nothing():
    student = graft(MODEL, replace("blocks[*].adaln", "adaln_lowrank", rank=D), RNG)
    assert_same_function(MODEL, student)


def test_shared_maps_with_low_ranks_lie_between_one_for_all_and_one_for_each():
    """Rank d is the function; of rank 2 what is left are the smallest singular values of what sharing lacks."""
    whole = graft(MODEL, replace("blocks[*].adaln", "adaln_shared_lowrank", rank=D), RNG)
    assert count_params(whole.spec) == sum(leaf.size for leaf in jax.tree.leaves(whole.params))
    student = graft(MODEL, replace("blocks[*].adaln", "adaln_shared_lowrank", rank=2), RNG)
    shared = student.params["shared"]["adaln_shared_lowrank"]
    u, wanted = sampled()
    for i in range(DEPTH):
        exact = modulation_at(whole.spec, whole.params, Site(i, "adaln"))
        assert conditions(SPEC, MODEL.params).error(exact, wanted[i]) < 1e-5
        kernel, bias = modulation_at(student.spec, student.params, Site(i, "adaln"))
        lacks = wanted[i][0] - np.asarray(shared["kernel"], np.float64)
        values = np.linalg.svd((u - u.mean(0)) @ lacks, compute_uv=False)
        error = u @ (kernel - wanted[i][0]) + bias - wanted[i][1]
        np.testing.assert_allclose(np.square(error).sum(), np.square(values[2:]).sum(), rtol=1e-3)


@pytest.mark.slow
def test_low_ranks_are_the_best_of_their_rank():
    """Reduced-rank regression: what is left is the smallest singular values of the centred vectors."""
    student = graft(MODEL, replace("blocks[1,3].adaln", "adaln_lowrank", rank=2), RNG)
    u, wanted = sampled()
    for i in (1, 3):
        kernel, bias = modulation_at(student.spec, student.params, Site(i, "adaln"))
        assert np.linalg.matrix_rank(kernel, tol=1e-4) == 2
        values = np.linalg.svd((u - u.mean(0)) @ wanted[i][0], compute_uv=False)
        error = u @ (kernel - wanted[i][0]) + bias - wanted[i][1]
        np.testing.assert_allclose(np.square(error).sum(), np.square(values[2:]).sum(), rtol=1e-4)
        found = conditions(SPEC, MODEL.params).error((kernel, bias), wanted[i])
        target = u @ wanted[i][0] + wanted[i][1]
        np.testing.assert_allclose(found, np.linalg.norm(error) / np.linalg.norm(target), rtol=1e-4)


def test_low_ranks_stay_bounded_where_the_vectors_never_were():
    """Training moves them there: the map is the old one with outputs projected, and both factors are of one size."""
    spread = np.random.default_rng(3).standard_normal((64, 2)) @ np.random.default_rng(4).standard_normal((2, D))
    narrow = Activated(spread.mean(0), np.cov(spread.T) + 1e-12 * np.eye(D))  # in all but two directions it hardly varies
    operator = slot_of("dit", "adaln").build(op("adaln_lowrank", rank=4), SPEC.sizes)
    (weights,), _ = operator.fit([sampled()[1][0]], narrow)
    kernel, down, up = sampled()[1][0][0], *(np.asarray(weights[name]["kernel"]) for name in ("down", "up"))
    assert np.linalg.norm(down @ up, 2) <= np.linalg.norm(kernel, 2) * (1 + 1e-5)
    np.testing.assert_allclose(np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1), rtol=1e-5)
    np.testing.assert_allclose(spread @ down @ up, spread @ kernel, rtol=1e-4, atol=1e-4)


def test_known_moments_are_those_of_the_samples():
    u, wanted = sampled()
    vec = find(SPEC).vectors(SPEC, MODEL.params, CONDITIONS)
    moments = Activated.of(vec)
    np.testing.assert_allclose(moments.mean, u.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(u.T, bias=True), atol=1e-6)
    np.testing.assert_allclose(moments.power(wanted[0]), np.square(u @ wanted[0][0] + wanted[0][1]).mean(0), rtol=1e-5)


def test_without_a_bias_it_is_the_least_squares_optimum():
    """Of maps of u without a constant; where the bias was zero all stays as it was."""
    student = graft(MODEL, replace("blocks[1,3].adaln", "adaln_no_bias"), RNG)
    u, wanted = sampled()
    for i in (1, 3):
        assert student.params["blocks"][f"0{i}"]["adaln"].keys() == {"kernel"}
        kernel, bias = modulation_at(student.spec, student.params, Site(i, "adaln"))
        target = u @ wanted[i][0] + wanted[i][1]
        assert not bias.any()
        left = [np.square(u @ found - target).sum() for found in (kernel, np.linalg.lstsq(u, target, rcond=None)[0])]
        np.testing.assert_allclose(*left, rtol=1e-3)
    back = graft(student, replace("blocks[1,3].adaln", "adaln"), RNG)
    assert_same_function(student, back)
    again = graft(back, replace("blocks[1,3].adaln", "adaln_no_bias"), RNG)
    assert_trees_close(again.params, student.params, rtol=1e-6, atol=1e-7)
    assert count_params(SPEC) - count_params(student.spec) == 2 * 6 * D


def test_random_modulations_are_drawn_and_start_at_zero():
    student = graft(MODEL, replace("blocks[1].adaln", "adaln_lowrank", rank=2, init="random"), RNG)
    fresh = student.params["blocks"]["01"]["adaln"]
    assert not np.any(fresh["up"]["kernel"])
    assert np.all(np.asarray(fresh["down"]["kernel"]) != 0)
    shared = graft(MODEL, replace("blocks[*].adaln", "adaln_shared", init="random"), RNG)
    assert not np.any(shared.params["shared"]["adaln_shared"]["kernel"])


def test_the_inverse_of_sharing_is_the_original():
    student = graft(MODEL, replace("blocks[*].adaln", "adaln_shared"), RNG)
    assert_same_leaves(MODEL.params, graft(student, inverse(MODEL)).params)
    one = graft(student, inverse(MODEL, "blocks[2].adaln"))
    assert_same_leaves(MODEL.params["blocks"]["02"], one.params["blocks"]["02"])
    assert one.params["shared"]["adaln_shared"]["kernel"] is student.params["shared"]["adaln_shared"]["kernel"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: replace("blocks[0].adaln", "adaln_lowrank", rank=D + 1), "rank: got 9, expected 1 to the width 8"),
        (lambda: replace("blocks[0].adaln", "adaln_lowrank", rank=0), "rank: got 0"),
        (lambda: replace("blocks[0].adaln", "mha"), "'mha' has the role mixer, expected one with the role modulation"),
        (lambda: replace("blocks[0].norm", "adaln"), "role modulation, expected one with the role norm"),
        (lambda: replace("blocks[0].norm1", "rms_norm", eps=0.0), "rms_norm eps: got 0.0, expected a positive number"),
    ],
)
def test_what_does_not_fit_is_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        graft(MODEL, edit(), RNG)


# --- Norms -------------------------------------------------------------------------------------------------------------


def test_the_role_names_both_norms_of_every_block():
    student, report = apply_edit(MODEL, replace("blocks[*].norm", "rms_norm"), RNG)
    for old, new in zip(SPEC.blocks, student.spec.blocks, strict=True):
        assert (new["norm1"], new["norm2"]) == (op("rms_norm", affine=False, eps=1e-6),) * 2
        assert new.with_op("norm1", old["norm1"]).with_op("norm2", old["norm2"]) == old
    assert_same_leaves(MODEL.params, student.params)
    assert [str(site) for site in report.sites] == [f"blocks[{i}].norm{n}" for i in range(DEPTH) for n in (1, 2)]
    assert not np.allclose(student(X, T, Y), MODEL(X, T, Y), atol=1e-2)


def test_norms_with_weights_start_as_those_without():
    student = graft(MODEL, replace("blocks[*].norm", "layer_norm", affine=True), RNG)
    assert count_params(student.spec) - count_params(SPEC) == DEPTH * 2 * 2 * D
    assert_same_function(MODEL, student)


# --- A vector for every token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["adaln", *(pytest.param(f"adaln_{kind}", marks=pytest.mark.slow) for kind in ("shared", "lowrank", "shared_lowrank"))],
)
def test_a_vector_for_every_token(kind):
    options = {"rank": 3} if kind.endswith("lowrank") else {}
    spec = replace("blocks[*].adaln", kind, **options).on(SPEC)
    params = random_params(spec, jax.random.key(3))
    rng = np.random.default_rng(1)
    x, vec = rng.standard_normal((2, 16, D), np.float32), rng.standard_normal((2, D), np.float32)

    @jax.jit
    def run(vec):
        context = with_shared(spec, params, Context(vec), None)
        return apply_stack(spec, params["blocks"], {"img": x}, context, plan="unroll")[0]["img"]

    each = jnp.broadcast_to(vec[:, None], (2, 16, D))
    expected = np.asarray(run(vec))
    np.testing.assert_allclose(run(each), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    other = each.at[:, 5].add(1.0)
    moved = np.abs(run(other) - expected).max((0, 2))
    assert moved[5] > 1e-3


@pytest.mark.slow
def test_grafts_of_all_kinds_in_one_edit():
    edit = compose(
        replace("blocks[0,1].adaln", "adaln_shared"), replace("blocks[2].adaln", "adaln_lowrank", rank=4),
        replace("blocks[3].norm", "rms_norm", affine=True), replace("blocks[1].mixer", "hyena_x"),
    )  # fmt: skip
    student = graft(MODEL, edit, RNG)
    outs = [student.apply(X, T, Y, plan=plan)[0] for plan in ("unroll", "kind_scan")]
    assert np.isfinite(outs[0]).all()
    assert_trees_close(*outs, rtol=1e-4, atol=1e-4)
