"""SD3's three kinds of blocks: each by its equation in numpy, from what its operators give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.blocks import Context, block_kind
from graftax.spec import Sizes

SIZES = Sizes(8, 2, 4, (2, 2), text=3)
RNG = np.random.default_rng(0)
TXT, IMG = (RNG.standard_normal((2, t, 8)).astype(np.float32) for t in (3, 4))
PARTS = {
    "sd3": {"img": 6, "txt": 6}, "sd3_dual": {"img": 9, "txt": 6}, "sd3_last": {"img": 6, "txt": 2},
}  # fmt: skip
MODULATION = {parts: RNG.standard_normal((2, parts * 8)).astype(np.float32) for parts in (2, 6, 9)}


def operators(kind):
    """Operators that are told apart by what they do: a norm doubles, attention adds the other stream's mean, ..."""
    run = {f"{name}/adaln": lambda parts=parts: jnp.asarray(MODULATION[parts]) for name, parts in PARTS[kind].items()}
    for name in ("img", "txt"):
        run |= {f"{name}/norm1": lambda x: 2 * x, f"{name}/norm2": lambda x: 3 * x, f"{name}/mlp": lambda x: x**2}
    run["img/attn2"] = lambda x: jnp.flip(x, 1)
    run["attn"] = lambda u: {
        "txt": u["txt"] + u["img"].mean(1, keepdims=True),
        "img": u["img"] - u["txt"].mean(1, keepdims=True),
    }
    return {slot.name: run[slot.name] for slot in block_kind(kind).slots}


def expected(kind):
    parts = {name: np.split(MODULATION[count][:, None], count, axis=-1) for name, count in PARTS[kind].items()}
    u = {name: 2 * x * (1 + parts[name][1]) + parts[name][0] for name, x in (("txt", TXT), ("img", IMG))}
    y = {"txt": u["txt"] + u["img"].mean(1, keepdims=True), "img": u["img"] - u["txt"].mean(1, keepdims=True)}
    out = {}
    for name, x in (("txt", TXT), ("img", IMG)):
        if kind == "sd3_last" and name == "txt":
            out[name] = x
            continue
        gate, shift, scale, gate_mlp = parts[name][2:6]
        x = x + gate * y[name]
        if len(parts[name]) == 9:
            shift2, scale2, gate2 = parts[name][6:]
            x = x + gate2 * (2 * IMG * (1 + scale2) + shift2)[:, ::-1]
        out[name] = x + gate_mlp * (3 * x * (1 + scale) + shift) ** 2
    return out


@pytest.mark.parametrize("kind", PARTS)
def test_blocks_by_their_equations(kind):
    block, state = block_kind(kind), {"txt": jnp.asarray(TXT), "img": jnp.asarray(IMG)}
    out, taps = block(operators(kind), state, Context(jnp.zeros((2, 8))), block.taps)
    for name, value in expected(kind).items():
        np.testing.assert_allclose(out[name], value, rtol=1e-4, atol=1e-4)
    assert set(taps) == set(block.taps)
    assert set(taps["attn/out"]) == {"txt", "img"}


def test_slots():
    def names(kind):
        return {slot.name: slot.parts for slot in block_kind(kind).slots if slot.role == "modulation"}

    assert names("sd3") == {"img/adaln": 6, "txt/adaln": 6}
    assert names("sd3_dual") == {"img/adaln": 9, "txt/adaln": 6}
    assert names("sd3_last") == {"img/adaln": 6, "txt/adaln": 2}
    tapped = {kind: block_kind(kind).tapped for kind in PARTS}
    assert tapped == {
        "sd3": ("img/mlp", "txt/mlp", "attn"), "sd3_dual": ("img/mlp", "img/attn2", "txt/mlp", "attn"),
        "sd3_last": ("img/mlp", "attn"),
    }  # fmt: skip
    assert [kind for kind in PARTS if block_kind(kind).pinned] == ["sd3_last"]


def test_operators_are_built_to_their_streams():
    sizes = {slot.name: slot.sizes(SIZES) for slot in block_kind("sd3_dual").slots}
    tokens = {name: sizes[name].tokens for name in ("img/mlp", "txt/mlp", "img/attn2", "attn")}
    assert tokens == {"img/mlp": 4, "txt/mlp": 3, "img/attn2": 4, "attn": 7}
    assert jax.tree.map(jnp.shape, expected("sd3")) == {"txt": TXT.shape, "img": IMG.shape}
