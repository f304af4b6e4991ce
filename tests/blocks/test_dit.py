"""DiT's block and its kin against their equation, with operators that are plain functions."""

import numpy as np
import pytest

from graftax.blocks import block_kind
from graftax.blocks.base import Context

RNG = np.random.default_rng(0)
B, N, D = 2, 4, 5
STATE = {name: RNG.standard_normal((B, N, D)).astype(np.float32) for name in ("cond", "img")}
VEC, TIME = RNG.standard_normal((2, B, D)).astype(np.float32)


def norm(x):
    return x / np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True))


def moved(x):
    return np.asarray(x)[:, ::-1]


def run(kind, modulation):
    """The block with plain functions as operators, on a context whose vectors `modulation` gets."""
    block = block_kind(kind)
    context = block.under(STATE, Context(VEC, time=TIME))
    made = {
        slot.name: (lambda: modulation(context.vec)) if slot.role == "modulation"
        else {"norm": norm, "channel": np.tanh, "mixer": moved}[slot.role]
        for slot in block.slots
    }  # fmt: skip
    return block(made, STATE, context, block.taps)


def expected(x, parts):
    for operator, (shift, scale, gate) in ((moved, parts[:3]), (np.tanh, parts[3:])):
        x = x + gate * operator(norm(x) * (1 + scale) + shift)
    return x


def six(vec):
    """Six vectors, of a global vec or of those of the tokens."""
    return np.concatenate([vec * factor for factor in (0.5, -1, 2, 1.5, 3, -0.5)], axis=-1)


@pytest.mark.parametrize(
    ("kind", "stream", "vec"),
    [
        ("dit", "img", VEC[:, None]), ("ddt_encoder", "cond", VEC[:, None]),
        ("ddt_decoder", "img", STATE["cond"] + TIME[:, None]),
    ],
)  # fmt: skip
def test_blocks_by_their_equation(kind, stream, vec):
    out, taps = run(kind, six)
    np.testing.assert_allclose(out[stream], expected(STATE[stream], np.split(six(vec), 6, axis=-1)), rtol=1e-5, atol=1e-5)
    (other,) = set(STATE) - {stream}
    assert out[other] is STATE[other]
    assert taps["mixer/in"].shape == taps["mlp/out"].shape == (B, N, D)


def test_without_shifts():
    def four(vec):
        return np.concatenate([vec * factor for factor in (-1, 2, 3, -0.5)], axis=-1)

    scale, gate, scale_mlp, gate_mlp = np.split(four(VEC)[:, None], 4, axis=-1)
    parts = (0, scale, gate, 0, scale_mlp, gate_mlp)
    np.testing.assert_allclose(run("dit_no_shift", four)[0]["img"], expected(STATE["img"], parts), rtol=1e-5, atol=1e-5)


def test_a_decoder_on_a_stream_that_holds_the_time_already():
    context = block_kind("ddt_decoder").under(STATE, Context(VEC))
    np.testing.assert_array_equal(context.vec, STATE["cond"])
    assert not context.shared
