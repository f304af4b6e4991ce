"""Linear attention with norms and positions: pair by pair, cost, what it takes over."""

import numpy as np
import pytest
from joint_oracle import IMG, PLACES, ROPE, SIZES, TXT, built, heads_of, turned

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.spec import op
from graftax.testing import assert_same_leaves

X = np.concatenate([TXT, IMG], axis=1)


def test_is_at_its_positions_in_the_numerator():
    operator, params = built("linear_normed", qk_norm="rms", bias="none")
    q, k, v = heads_of(X, params, "rms")
    q, k = np.maximum(q, 0), np.maximum(k, 0)
    total = np.einsum("bqhk,bmhk->bhq", q, k)
    weights = np.einsum("bqhk,bmhk->bhqm", turned(q, PLACES), turned(k, PLACES)) / np.maximum(total, 1e-300)[..., None]
    mixed = np.einsum("bhqm,bmhk->bqhk", weights, v).reshape(2, 11, 12)
    np.testing.assert_allclose(call(operator, params, X, rope=ROPE), mixed @ params["proj"]["kernel"], atol=1e-5)
    assert operator.cost().op_flops == 2 * 2 * 11 * 12 * 6 + 4 * 11 * 12
    donor, weights = built("mha_normed", bias="none")
    assert_same_leaves(operator.transplant(params, donor, weights), weights)


def test_refuses_and_is_not_recognised():
    with pytest.raises(BadInput, match="linear_normed feature: got 'x'"):
        ops.resolve(op("linear_normed", feature="x"), "mixer", SIZES)
    assert built("linear_normed")[0].recognise({}, {}) is None
