"""Joint attention in a disc and in squares: pair by pair under its mask, what it takes over, cost."""

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
    in_any,
    in_disc,
    in_square,
    turned,
    visible,
)

from graftax import ops
from graftax.errors import BadInput
from graftax.ops import tiles
from graftax.spec import op
from graftax.testing import assert_same_leaves

KINDS = {
    "joint_clear": ("radius", 2, in_disc(2)),
    "joint_swa_2d": ("window", 1, in_square(1)),
    "joint_natten": ("window", 1, in_any),
}
"""The option that says how far, a value, and who then sees whom."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "rope"),
    [({"qk_norm": "rms"}, ROPE), ({"qk_norm": "layer", "bias": "none"}, None), ({"text_out": False}, ROPE)],
)
@pytest.mark.parametrize("in_strips", [False, True])
def test_equals_masked_attention(kind, options, rope, in_strips, monkeypatch):
    option, far, near = KINDS[kind]
    if in_strips:
        monkeypatch.setattr(tiles, "DENSE_BELOW", dict.fromkeys(tiles.DENSE_BELOW, 0))
    operator, params = built(kind, **{option: far}, **options)

    def mix(q, k, v):
        q, k = (q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))
        return attention(q, k, v, visible(near))

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)


@pytest.mark.parametrize("kind", KINDS)
def test_takes_over_joint_attention(kind):
    option = KINDS[kind][0]
    donor, weights = built("joint_mha", qk_norm="rms")
    wide, narrow = (built(kind, **{option: far}, qk_norm="rms") for far in (9, 1))
    taken = wide[0].transplant(wide[1], donor, weights)
    assert_same_leaves(taken, weights)
    dense, far, close = (one.apply({"params": weights}, STREAMS, rope=ROPE) for one in (donor, wide[0], narrow[0]))
    for name in STREAMS:
        np.testing.assert_allclose(far[name], dense[name], atol=1e-5)
    np.testing.assert_allclose(close["txt"], dense["txt"], atol=1e-5)  # the text sees all anyway
    assert (abs(close["img"] - dense["img"]).max() > 0.01) == (kind != "joint_natten")


@pytest.mark.parametrize("text_out", [True, False])
def test_cost_counts_the_pairs_that_are_visible(text_out):
    operator, _ = built("joint_clear", radius=2, qk_norm="rms", text_out=text_out)
    pairs = visible(in_disc(2))[0 if text_out else 5 :].sum()
    assert_counted(operator, pairs * (4 * 12 + 2 * 2))


@pytest.mark.parametrize("kind", ["joint_swa_2d", "joint_natten"])
@pytest.mark.parametrize("text_out", [True, False])
def test_cost_counts_whole_windows_and_all_of_the_text(text_out, kind):
    operator, _ = built(kind, window=1, qk_norm="rms", text_out=text_out)
    pairs = 5 * 11 * text_out + 6 * (5 + 2 * 3)  # a window of 3 x 3 has two rows here
    assert_counted(operator, pairs * (4 * 12 + 2 * 2))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses(kind):
    option = KINDS[kind][0]
    for options, message in (
        ({option: 0}, f"{kind} {option}: got 0"),
        ({"bias": "some"}, f"{kind} bias: got 'some'"),
    ):
        with pytest.raises(BadInput, match=message):
            ops.resolve(op(kind, **options), "joint", SIZES)
