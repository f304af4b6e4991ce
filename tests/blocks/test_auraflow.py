"""AuraFlow's blocks against their equation, with operators that are plain functions."""

import numpy as np
import pytest

from graftax.blocks import block_kind
from graftax.blocks.base import Context

RNG = np.random.default_rng(0)
B, M, N, D = 2, 3, 4, 5
STATE = {name: RNG.standard_normal((B, t, D)).astype(np.float32) for name, t in (("txt", M), ("img", N))}
MODULATION = {name: RNG.standard_normal((B, 6 * D)).astype(np.float32) for name in ("txt", "img")}


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def residual(x, modulation, attention, mlp):
    """x + g2 mlp(mod norm(x + g1 attention(mod norm x)))."""
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = np.split(modulation[:, None], 6, axis=-1)
    h = norm(x + gate * attention(norm(x) * (1 + scale) + shift))
    return x + gate_mlp * mlp(h * (1 + scale_mlp) + shift_mlp)


def run(kind, attention, mlp):
    """The block with these functions, and what it taps."""

    def operators(slot):
        if slot.role == "modulation":
            return lambda: MODULATION[slot.streams[0]]
        return {"norm": norm, "channel": mlp, "joint": attention, "mixer": attention}[slot.role]

    block = block_kind(kind)
    made = {slot.name: operators(slot) for slot in block.slots}
    return block(made, STATE, Context(np.zeros((B, D))), block.taps)


def mean_of(streams):
    """Every token gets the mean over all tokens of both streams."""
    both = np.concatenate([streams["txt"], streams["img"]], axis=1)
    return {name: np.broadcast_to(both.mean(1, keepdims=True), x.shape) for name, x in streams.items()}


def test_joint_blocks():
    out, taps = run("aura_joint", mean_of, np.tanh)
    for name, x in STATE.items():
        answer = np.asarray(taps["attn/out"][name])
        np.testing.assert_allclose(out[name], residual(x, MODULATION[name], lambda u, y=answer: y, np.tanh), atol=1e-5)
        expected = mean_of({name: np.asarray(u) for name, u in taps["attn/in"].items()})
        np.testing.assert_allclose(answer, expected[name], atol=1e-6)
    assert {name for name in taps if "norm" not in name} == {
        "block/in", "attn/in", "attn/out", "img/mlp/in", "img/mlp/out", "txt/mlp/in", "txt/mlp/out", "block/out",
    }  # fmt: skip


def test_single_blocks():
    def turn(x):
        return np.asarray(x)[:, ::-1]  # from the text to the image, and back

    out, taps = run("aura_single", turn, np.tanh)
    both = np.concatenate([STATE["txt"], STATE["img"]], axis=1)
    expected = residual(both, MODULATION["txt"], turn, np.tanh)
    np.testing.assert_allclose(np.concatenate([out["txt"], out["img"]], axis=1), expected, atol=1e-5)
    assert taps["mixer/in"].shape == taps["mlp/out"].shape == (B, M + N, D)
    assert out["txt"].shape[1] == M


@pytest.mark.parametrize("kind", ["aura_joint", "aura_single"])
def test_without_an_answer_of_the_channel_mixer_nothing_changes(kind):
    """The attention's answer is not added to the stream."""
    out, _ = run(kind, mean_of if kind == "aura_joint" else np.tanh, np.zeros_like)
    for name, x in STATE.items():
        np.testing.assert_array_equal(out[name], x)
