"""Joint attention in a window on the grid: pair by pair under its mask, what it takes over, cost."""

import numpy as np
import pytest
from joint_oracle import (
    PLACES,
    ROPE,
    SIZES,
    STREAMS,
    assert_counted,
    assert_defined,
    attention,
    built,
    in_square,
    turned,
    visible,
)

from graftax import ops
from graftax.errors import BadInput
from graftax.ops import tiles
from graftax.spec import op
from graftax.testing import assert_same_leaves


@pytest.mark.parametrize(
    ("options", "rope"),
    [({"qk_norm": "rms"}, ROPE), ({"qk_norm": "layer", "bias": "none"}, None), ({"text_out": False}, ROPE)],
)
@pytest.mark.parametrize("in_strips", [False, True])
def test_equals_masked_attention(options, rope, in_strips, monkeypatch):
    if in_strips:
        monkeypatch.setattr(tiles, "DENSE_BELOW", dict.fromkeys(tiles.DENSE_BELOW, 0))
    operator, params = built("joint_swa_2d", window=1, **options)

    def mix(q, k, v):
        q, k = (q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))
        return attention(q, k, v, visible(in_square(1)))

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)


def test_takes_over_joint_attention():
    donor, weights = built("joint_mha", qk_norm="rms")
    wide, narrow = (built("joint_swa_2d", window=window, qk_norm="rms") for window in (9, 1))
    taken = wide[0].transplant(wide[1], donor, weights)
    assert_same_leaves(taken, weights)
    dense, far, close = (one.apply({"params": weights}, STREAMS, rope=ROPE) for one in (donor, wide[0], narrow[0]))
    for name in STREAMS:
        np.testing.assert_allclose(far[name], dense[name], atol=1e-5)
    np.testing.assert_allclose(close["txt"], dense["txt"], atol=1e-5)  # the text sees all anyway
    assert abs(close["img"] - dense["img"]).max() > 0.01


@pytest.mark.parametrize("text_out", [True, False])
def test_cost_counts_whole_windows_and_all_of_the_text(text_out):
    operator, _ = built("joint_swa_2d", window=1, qk_norm="rms", text_out=text_out)
    pairs = 5 * 11 * text_out + 6 * (5 + 2 * 3)  # a window of 3 x 3 has two rows here
    assert_counted(operator, pairs * (4 * 12 + 2 * 2))


def test_refuses():
    for options, message in (
        ({"window": 0}, "joint_swa_2d window: got 0"),
        ({"bias": "some"}, "joint_swa_2d bias: got 'some'"),
    ):
        with pytest.raises(BadInput, match=message):
            ops.resolve(op("joint_swa_2d", **options), "joint", SIZES)
