"""Passes that take changes from an earlier pass: nothing taken is the model itself, everything taken computes no block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.models import forward
from graftax.models.reuse import First, by_first_block, by_table, inside, prepare_reusing
from graftax.spec import Step
from graftax.testing import random_params, tiny_spec

SPEC = tiny_spec(hidden_size=24, depth=3, num_heads=2)
LOOPED = dataclasses.replace(SPEC, program=(SPEC.program[0], Step((1, 2), loops=2)))
KEY = jax.random.key(0)


def inputs(spec, time):
    x = jax.random.normal(jax.random.key(1), (2, *spec.image_shape))
    return x, jnp.full(2, time), {"y": jnp.array([1, 2])}


@pytest.fixture(scope="module", params=[SPEC, LOOPED], ids=["plain", "looped"])
def model(request):
    spec = request.param
    params = random_params(spec, KEY)

    @jax.jit
    def table(time, computed, changes):
        runs, state, head = inside(spec, prepare_reusing(spec, params), *inputs(spec, time))
        state, changes = by_table(runs, state, computed, changes)
        return head(state), changes

    return spec, params, table


def test_what_is_all_computed_is_the_model(model):
    spec, params, table = model
    expected = forward(spec, params, *inputs(spec, 300.0), plan="unroll")[0]
    found, changes = table(300.0, None, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    again, _ = table(300.0, jnp.ones(len(spec.program), bool), changes)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_changes_of_the_same_input_change_nothing(model):
    spec, _, table = model
    expected, changes = table(300.0, None, None)
    for computed in ([True, False], [False, True], [False, False]):
        row = jnp.resize(jnp.array(computed), len(spec.program))
        found, kept = table(300.0, row, changes)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-4), kept, changes))


def test_a_taken_change_is_that_of_the_earlier_pass(model):
    spec, _, table = model
    exact, _ = table(310.0, None, None)
    _, changes = table(300.0, None, None)
    row = jnp.arange(len(spec.program)) == 0
    near, kept = table(310.0, row, changes)
    assert 0 < np.abs(near - exact).max() < np.abs(exact).max()
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), kept[1:], changes[1:]))


def test_the_first_block_decides():
    params = random_params(SPEC, KEY)

    @jax.jit
    def first(time, threshold, must, before):
        runs, state, head = inside(SPEC, prepare_reusing(SPEC, params), *inputs(SPEC, time))
        state, kept = by_first_block(runs, state, threshold, must, before)
        return head(state), kept

    exact, before = first(300.0, 0.1, True, None)
    assert isinstance(before, First)
    moved, _ = first(310.0, 0.1, True, before)
    taken, kept = first(310.0, 1e3, False, before)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, kept, before))
    whole, kept = first(310.0, 0.0, False, before)
    np.testing.assert_allclose(whole, moved, rtol=1e-5, atol=1e-5)
    assert np.abs(taken - moved).max() > 1e-3 < np.abs(exact - moved).max()
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, kept, before))
