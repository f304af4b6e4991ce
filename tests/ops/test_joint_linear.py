"""Joint linear attention: pair by pair, what it takes over, cost."""

import numpy as np
import pytest
from joint_oracle import PLACES, ROPE, SIZES, assert_counted, assert_defined, built, turned

from graftax import ops
from graftax.errors import BadInput
from graftax.spec import op
from graftax.testing import assert_same_leaves

PHI = {"relu": lambda a: np.maximum(a, 0), "elu": lambda a: np.where(a > 0, a + 1, np.exp(np.minimum(a, 0)))}


@pytest.mark.parametrize(
    ("options", "rope"),
    [
        ({"feature": "relu", "qk_norm": "rms"}, ROPE), ({"feature": "elu", "bias": "none"}, None),
        ({"feature": "elu", "qk_norm": "layer", "text_out": False}, ROPE), ({}, None),
    ],
)  # fmt: skip
def test_equals_the_definition_pair_by_pair(options, rope):
    """Weights phi(q) phi(k), positions in them, over the sum of those without."""
    operator, params = built("joint_linear", **options)

    def mix(q, k, v):
        q, k = (PHI[options.get("feature", "relu")](a) for a in (q, k))
        total = np.einsum("bqhk,bmhk->bhq", q, k)
        q, k = (q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))
        weights = np.einsum("bqhk,bmhk->bhqm", q, k) / np.maximum(total, 1e-300)[..., None]  # (2, 2, 11, 11)
        return np.einsum("bhqm,bmhk->bqhk", weights, v).reshape(2, 11, 12)

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)


def test_takes_over_joint_attention():
    donor, weights = built("joint_mha", qk_norm="rms")
    operator, fresh = built("joint_linear", qk_norm="rms")
    assert_same_leaves(operator.transplant(fresh, donor, weights), weights)


@pytest.mark.parametrize("text_out", [True, False])
def test_cost(text_out):
    operator, _ = built("joint_linear", qk_norm="rms", text_out=text_out)
    asking = 11 if text_out else 6
    products, normaliser = 2 * 11 * 2 * 6 * 6 + 2 * asking * 2 * 6 * 6, 11 * 12 + 3 * asking * 12
    assert_counted(operator, products + normaliser)


def test_refuses():
    with pytest.raises(BadInput, match="joint_linear feature: got 'gelu', expected one of"):
        ops.resolve(op("joint_linear", feature="gelu"), "joint", SIZES)
