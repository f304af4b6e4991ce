"""A disc for normed attention: wide enough it is that attention, else masked; cost; never read from a file."""

import numpy as np
import pytest
from joint_oracle import IMG, PLACES, ROPE, SIZES, TXT, attention, built, heads_of, in_disc, turned, visible

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.spec import op
from graftax.testing import assert_same_leaves

X = np.concatenate([TXT, IMG], axis=1)


def test_equals_masked_attention():
    operator, params = built("clear_normed", radius=2, qk_norm="rms", bias="in")
    q, k, v = heads_of(X, params, "rms")
    mixed = attention(turned(q, PLACES), turned(k, PLACES), v, visible(in_disc(2)))
    np.testing.assert_allclose(call(operator, params, X, rope=ROPE), mixed @ params["proj"]["kernel"], atol=1e-5)


def test_takes_over_normed_attention():
    donor, weights = built("mha_normed", bias="none")
    operator, fresh = built("clear_normed", radius=9, bias="none")
    taken = operator.transplant(fresh, donor, weights)
    assert_same_leaves(taken, weights)
    np.testing.assert_allclose(call(operator, taken, X, rope=ROPE), call(donor, weights, X, rope=ROPE), atol=1e-5)


def test_cost_counts_the_pairs_that_are_visible():
    operator, params = built("clear_normed", radius=2, bias="in")
    cost = operator.cost()
    assert cost.params == sum(leaf.size for part in params.values() for leaf in part.values())
    assert cost.op_flops == visible(in_disc(2)).sum() * (4 * 12 + 2 * 2)
    assert cost.featurizer_flops == 8 * 11 * 12 * 12


def test_refuses_and_is_not_recognised():
    with pytest.raises(BadInput, match="clear_normed radius: got 0"):
        ops.resolve(op("clear_normed", radius=0), "mixer", SIZES)
    assert built("clear_normed")[0].recognise({}, {}) is None
