"""A window for normed attention: under its mask, cost, what it takes over."""

import numpy as np
import pytest
from joint_oracle import IMG, PLACES, ROPE, SIZES, TXT, attention, built, heads_of, turned

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.spec import op
from graftax.testing import assert_same_leaves

X = np.concatenate([TXT, IMG], axis=1)


def test_equals_masked_attention():
    operator, params = built("swa_normed", window=2, qk_norm="rms", bias="in")
    q, k, v = heads_of(X, params, "rms")
    mixed = attention(turned(q, PLACES), turned(k, PLACES), v, abs(np.arange(11)[:, None] - np.arange(11)) <= 2)
    np.testing.assert_allclose(call(operator, params, X, rope=ROPE), mixed @ params["proj"]["kernel"], atol=1e-5)
    assert operator.cost().op_flops == 11 * 5 * (4 * 12 + 2 * 2)
    donor, weights = built("mha_normed", bias="in")
    assert_same_leaves(operator.transplant(params, donor, weights), weights)


def test_refuses_and_is_not_recognised():
    with pytest.raises(BadInput, match="swa_normed window: got 0"):
        ops.resolve(op("swa_normed", window=0), "mixer", SIZES)
    assert built("swa_normed")[0].recognise({}, {}) is None
