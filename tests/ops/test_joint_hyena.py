"""Joint Hyena-X: its definition on text and image as one sequence, what it takes over, cost."""

import numpy as np
import pytest
from joint_oracle import SIZES, assert_counted, assert_defined, built

from graftax import ops
from graftax.errors import BadInput
from graftax.spec import op
from graftax.testing import assert_same_leaves


@pytest.mark.parametrize("options", [{}, {"kernel": 3, "bias": "none"}, {"kernel": 1, "bias": "in", "text_out": False}])
def test_equals_the_definition(options):
    operator, params = built("joint_hyena_x", **options)
    taps, bias = params["short_filter"]["kernel"], params["short_filter"]["bias"]
    assert len(taps) == options.get("kernel", 4)

    def mix(*parts):
        u = np.concatenate([part.reshape(2, 11, 12) for part in parts], axis=-1)
        past = np.concatenate([np.zeros((2, len(taps) - 1, 36)), u], axis=1)
        q, k, v = np.split(bias + sum(past[:, i : i + 11] * tap for i, tap in enumerate(taps)), 3, axis=-1)
        return q * k * v

    assert_defined(operator, params, "none", mix)


def test_takes_over_projections_and_equal_filters():
    operator, fresh = built("joint_hyena_x")
    donor, weights = built("joint_mha", qk_norm="rms")
    taken = operator.transplant(fresh, donor, weights)
    for name in ("txt", "img"):
        assert_same_leaves(taken[name], {part: weights[name][part] for part in ("qkv", "proj")})
    assert taken["short_filter"] is fresh["short_filter"]
    trained = {**taken, "short_filter": weights}
    wide, start = built("joint_hyena_x", kernel=5)
    assert wide.transplant(start, operator, trained)["short_filter"] is start["short_filter"]
    assert_same_leaves(operator.transplant(fresh, operator, taken), taken)
    back = donor.transplant(weights, operator, taken)
    assert back["txt"]["qkv"] is taken["txt"]["qkv"]
    assert back["txt"]["q_norm"] is weights["txt"]["q_norm"]


@pytest.mark.parametrize("text_out", [True, False])
def test_cost(text_out):
    operator, _ = built("joint_hyena_x", kernel=3, text_out=text_out)
    assert_counted(operator, 2 * (11 if text_out else 6) * 12, 2 * 3 * 36 * 11)


def test_refuses():
    for options, message in (
        ({"kernel": 0}, "joint_hyena_x kernel: got 0"),
        ({"qk_norm": "rms"}, "option 'qk_norm': not known"),
    ):
        with pytest.raises(BadInput, match=message):
            ops.resolve(op("joint_hyena_x", **options), "joint", SIZES)
