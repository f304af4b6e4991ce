"""Windows on the grid for normed attention: under its mask, with and without a text, cost, what it takes over."""

import dataclasses

import numpy as np
import pytest
from joint_oracle import IMG, PLACES, ROPE, SIZES, TXT, attention, built, heads_of, in_any, in_square, turned, visible

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.spec import op
from graftax.testing import assert_same_leaves

X = np.concatenate([TXT, IMG], axis=1)
KINDS = ("swa_2d_normed", "natten_normed")
NO_TEXT = dataclasses.replace(SIZES, text=0)


@pytest.mark.parametrize(("kind", "near"), [("swa_2d_normed", in_square(1)), ("natten_normed", in_any)])
def test_equals_masked_attention(kind, near):
    operator, params = built(kind, window=1, qk_norm="rms", bias="in")
    q, k, v = heads_of(X, params, "rms")
    mixed = attention(turned(q, PLACES), turned(k, PLACES), v, visible(near))
    np.testing.assert_allclose(call(operator, params, X, rope=ROPE), mixed @ params["proj"]["kernel"], atol=1e-5)


def test_equals_masked_attention_without_a_text():
    _, params = built("swa_2d_normed", window=1, bias="in")
    alone = ops.build(ops.resolve(op("swa_2d_normed", window=1, bias="in"), "mixer", NO_TEXT), NO_TEXT)
    q, k, v = heads_of(IMG, params, "rms")
    mixed = attention(q, k, v, visible(in_square(1))[5:, 5:])
    np.testing.assert_allclose(call(alone, params, IMG, rope=None), mixed @ params["proj"]["kernel"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_takes_over_normed_attention(kind):
    donor, weights = built("mha_normed", bias="none")
    operator, fresh = built(kind, window=9, bias="none")
    taken = operator.transplant(fresh, donor, weights)
    assert_same_leaves(taken, weights)
    np.testing.assert_allclose(call(operator, taken, X, rope=ROPE), call(donor, weights, X, rope=ROPE), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_counts_whole_windows_and_all_of_the_text(kind):
    operator, params = built(kind, window=1, bias="in")
    cost = operator.cost()
    assert cost.params == sum(leaf.size for part in params.values() for leaf in part.values())
    pairs = 5 * 11 + 6 * (5 + 2 * 3)  # a window of 3 x 3 has two rows here
    assert cost.op_flops == pairs * (4 * 12 + 2 * 2)
    assert cost.featurizer_flops == 8 * 11 * 12 * 12


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_and_is_not_recognised(kind):
    with pytest.raises(BadInput, match=f"{kind} window: got 0"):
        ops.resolve(op(kind, window=0), "mixer", SIZES)
    assert built(kind)[0].recognise({}, {}) is None
