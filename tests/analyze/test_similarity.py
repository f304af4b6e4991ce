"""Similarity of states by its definition; groups that no other cut beats."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.analyze.similarity import ALL, FORMS, contrast, segment, state_similarities, state_similarity
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.forward import embed
from graftax.models.stack import apply_stack
from graftax.spec import Step
from graftax.testing import random_params, tiny_spec

PROGRAM = (Step((0,)), Step((2, 1), "sum", loops=2, alpha=0.5), Step((3,)))


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 8, 8, 4), np.float32), np.array([3, 600]), {"y": np.array([1, 10])}


def direct(model, inputs):
    """All states (T + 1, b, n, d), by running ever more steps of the program."""
    spec = model.spec
    state, context = embed(spec, model.params, *inputs)
    programs = [spec.program[:k] for k in range(1, len(spec.program) + 1)]
    run = jax.jit(apply_stack, static_argnums=0, static_argnames="plan")
    states = [run(spec.replace(program=p), model.params["blocks"], state, context, plan="unroll")[0] for p in programs]
    return np.stack([np.concatenate(list(one.values()), 1) for one in [state, *states]]).astype(np.float64)


def test_is_the_cosine_of_all_states():
    spec = tiny_spec(hidden_size=16, num_heads=2).replace(program=PROGRAM)
    check(Model(spec, random_params(spec, jax.random.key(0))), [batch(0), batch(1)])


def test_all_streams_count(two_streams, streams_batch):
    check(two_streams, [streams_batch])


def test_each_stream_by_itself(two_streams, streams_batch):
    """Streams of one pass; where there is one alone, it is all."""
    found = state_similarities(two_streams, [streams_batch])
    assert set(found) == {(stream, form) for stream in (ALL, "img", "txt") for form in FORMS}
    states = direct(two_streams, streams_batch)  # img before txt
    for stream, part in {"img": states[:, :, :4], "txt": states[:, :, 4:]}.items():
        flat = part.reshape(*part.shape[:2], -1)
        unit = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
        cosines = np.einsum("ibd,jbd->ij", unit, unit) / len(streams_batch[1])
        np.testing.assert_allclose(found[stream, "sample"], cosines, rtol=1e-5, atol=1e-5)
    spec = tiny_spec(hidden_size=16, num_heads=2, depth=1)
    found = state_similarities(Model(spec, random_params(spec, jax.random.key(0))), [batch(0)])
    assert set(found) == {(ALL, form) for form in FORMS}


def test_zeros_have_no_direction(two_streams, streams_batch):
    """Tokens of a text that begin as zeros are left out; a text of nothing else is alike itself alone."""
    x, t, cond = streams_batch
    text = cond["text"].at[:, 1].set(0)
    found = state_similarities(two_streams, [(x, t, {"text": text})])["txt", "token"]
    first, *rest = direct(two_streams, (x, t, {"text": text}))[:, :, 4:]  # img before txt
    unit = [one / np.maximum(np.linalg.norm(one, axis=-1, keepdims=True), 1e-9) for one in (first, *rest)]
    assert found[0, 1] == pytest.approx((unit[0] * unit[1]).sum(-1)[:, [0, 2]].mean(), abs=1e-5)
    assert found[1, 2] == pytest.approx((unit[1] * unit[2]).sum(-1).mean(), abs=1e-5)
    empty = state_similarities(two_streams, [(x, t, {"text": jnp.zeros_like(text)})])["txt", "sample"]
    np.testing.assert_allclose(np.diag(empty), 1, atol=1e-6)
    np.testing.assert_allclose(empty[0, 1:], 0, atol=1e-6)
    assert segment(empty, None)


def check(model, inputs):
    states = np.concatenate([direct(model, one) for one in inputs], 1)  # (T + 1, samples, all tokens, d)
    expected = {"token": states / np.linalg.norm(states, axis=-1, keepdims=True)}
    flat = states.reshape(*states.shape[:2], -1)
    expected["sample"] = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    for form, unit in expected.items():
        found = state_similarity(model, inputs, form=form)
        cosines = (unit[:, None] * unit[None]).sum(-1).reshape(len(states), len(states), -1).mean(-1)
        np.testing.assert_allclose(found, cosines, rtol=1e-5, atol=1e-5)


def blocks_of(sizes, within=0.9, between=0.2):
    label = np.repeat(np.arange(len(sizes)), sizes)
    found = np.where(label[:, None] == label, within, between)
    np.fill_diagonal(found, 1)
    return found


@pytest.mark.parametrize("sizes", [(1, 6, 2), (3, 3, 3), (1, 1, 7)])
def test_groups_that_are_there_are_found(sizes):
    similarity = blocks_of(sizes)
    edges = [0, *np.cumsum(sizes).tolist()]
    groups = segment(similarity, 3)
    assert groups == tuple(itertools.pairwise(edges))
    assert segment(blocks_of(sizes, within=0.999), None) == groups
    assert contrast(similarity, groups) == pytest.approx(0.7)


def test_no_cut_costs_less():
    states = np.random.default_rng(0).standard_normal((7, 5)).cumsum(0)
    states /= np.linalg.norm(states, axis=1, keepdims=True)

    def scatter(groups):
        return sum(np.square(states[lo:hi] - states[lo:hi].mean(0)).sum() for lo, hi in groups)

    for count in range(1, 8):
        cuts = [tuple(itertools.pairwise((0, *cut, 7))) for cut in itertools.combinations(range(1, 7), count - 1)]
        assert segment(states @ states.T, count) == min(cuts, key=scatter)


def test_limits():
    assert segment(np.ones((1, 1)), None) == ((0, 1),)
    assert contrast(np.eye(3), [(0, 3)]) == 0
    with pytest.raises(BadInput, match=r"groups: got 4 of 3 states, expected 1\.\.3"):
        segment(np.eye(3), 4)
    spec = tiny_spec()
    model = Model(spec, random_params(spec, jax.random.key(0)))
    with pytest.raises(BadInput, match="form: got 'cka'"):
        state_similarity(model, [], form="cka")
    with pytest.raises(BadInput, match="similarity: no inputs"):
        state_similarity(model, [])
