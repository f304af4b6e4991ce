"""MLP Hyena-X: its convolution along features with and without the leak, fixed length, costs, published file."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_golden, assert_gradients, made, weights_of

from graftax.backbones.dit import variant
from graftax.errors import BadInput
from graftax.models.cost import slot_cost
from graftax.ops import OPERATORS, resolve
from graftax.spec import op
from graftax.testing import tiny_spec

GOLDENS = Path(__file__).parent.parent / "goldens"
SPEC = tiny_spec(hidden_size=24, num_heads=3)
XL = variant("DiT-XL/2")
KINDS = ["mlp_hyena_x", "mlp_hyena_x_split"]
by_kind = pytest.mark.parametrize("kind", KINDS)


def inputs():
    return np.random.default_rng(0).standard_normal((2, SPEC.tokens, SPEC.width), np.float32)


def along_features(u, p):
    """The definition in float64: every token's own filter over its features, zeros before the first."""
    features, taps = u.shape[-1], len(p["kernel"])
    padded = np.pad(u, ((0, 0), (0, 0), (taps - 1, 0)))
    return p["bias"][:, None] + sum(padded[..., i : i + features] * p["kernel"][i][:, None] for i in range(taps))


@by_kind
def test_equals_the_definition(kind):
    operator, x = made(op(kind, ratio=1.7, kernel=3), SPEC), inputs()
    weights = weights_of(operator)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    u = x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    if kind == "mlp_hyena_x":
        q, k, v = np.split(along_features(u, p["short_filter"]), 3, axis=-1)
    else:
        q, k, v = (along_features(part, p["short_filter"]) for part in np.split(u, 3, axis=-1))
    expected = (q * k * v) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(operator.apply({"params": weights}, x), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "leaks"), [("mlp_hyena_x", True), ("mlp_hyena_x_split", False)])
def test_the_leak(kind, leaks):
    """The last feature of q reaches the first K - 1 features of k, or none."""
    operator = made(op(kind), SPEC).bind({"params": weights_of(made(op(kind), SPEC))})
    u = np.random.default_rng(0).standard_normal((1, SPEC.tokens, 3 * operator.hidden), np.float32)
    changed = u.copy()
    changed[..., operator.hidden - 1] += 1
    differs = (operator.convolved(u) != operator.convolved(changed)).any(axis=(0, 1))
    after = [operator.hidden + i for i in range(3)] if leaks else []
    assert np.flatnonzero(differs).tolist() == [operator.hidden - 1, *after]


@by_kind
def test_no_tokens_mix(kind):
    operator, x = made(op(kind), SPEC), inputs()
    weights = weights_of(operator)
    changed = x.copy()
    changed[:, 5] += 1
    before, after = (np.asarray(operator.apply({"params": weights}, a)) for a in (x, changed))
    assert np.flatnonzero((before != after).any(axis=(0, 2))).tolist() == [5]


@by_kind
@pytest.mark.parametrize("tokens", [9, 25])
def test_other_lengths_are_refused(kind, tokens):
    operator = made(op(kind), SPEC)
    with pytest.raises(BadInput, match=f"{kind}: got {tokens} tokens, expected 16") as caught:
        operator.apply({"params": weights_of(operator)}, np.zeros((1, tokens, SPEC.width), np.float32))
    assert "\n" not in str(caught.value)


@by_kind
def test_gradients_equal_numerical_differences(kind):
    operator = made(op(kind, kernel=3), SPEC)
    assert_gradients(operator, weights_of(operator), inputs())


@pytest.mark.slow
@by_kind
def test_bfloat16_stays_near(kind):
    operator, x = made(op(kind), SPEC), inputs()
    weights = weights_of(operator)
    expected = operator.apply({"params": weights}, x)
    out = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.03 * jnp.abs(expected).max()


@by_kind
def test_cost_at_xl(kind):
    operator = made(op(kind), XL)
    assert operator.cost().params == 10_626_176
    assert operator.cost().op_flops == 16 * 256 * 1152**2 + 4 * 256 * 1152
    x = jax.ShapeDtypeStruct((1, 256, 1152), jnp.float32)
    shapes = jax.eval_shape(operator.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 10_626_176


@pytest.mark.parametrize(("ratio", "flops", "params"), [(1.0, 0.02, 0.03), (0.75, 0.02, 0.03), (0.5, 0.01, 0.02)])
def test_paper_table_4(ratio, flops, params):
    mlp = resolve(op("mlp_hyena_x"), "channel", XL.sizes)
    count = round(28 * ratio)
    blocks = tuple(block.with_op("mlp", mlp) if i < count else block for i, block in enumerate(XL.blocks))
    before, after = slot_cost(XL, "mlp"), slot_cost(XL.replace(blocks=blocks), "mlp")
    assert round(100 * (after.flops / before.flops - 1), 2) == flops
    assert round(100 * (after.params / before.params - 1), 2) == params


def test_published_layout():
    spec = assert_golden(GOLDENS / "graft_mlp_mlp_hyena_x_50p", 2e-5)
    assert [block["mlp"] for block in spec.blocks] == [op("mlp", ratio=4.0), op("mlp_hyena_x", kernel=4, ratio=2.0)] * 2


@by_kind
def test_recognised_from_its_tensors(kind):
    assert_exports(op(kind, ratio=1.5, kernel=3))


def test_both_variants_exchange_weights():
    plain, split = (made(op(kind), SPEC) for kind in KINDS)
    weights = weights_of(plain)
    assert split.transplant({}, plain, weights) is weights
    assert plain.transplant({}, split, weights) is weights
    assert plain.transplant({}, made(op("mlp_hyena_x", ratio=3.0), SPEC), weights) is None
    assert plain.transplant({}, made(op("mlp_hyena_x", kernel=3), SPEC), weights) is None
    assert plain.transplant({}, made(op("mlp"), SPEC), weights) is None


@by_kind
def test_distilled_with_the_loss_of_mlps(kind):
    assert OPERATORS[kind].regression_loss == "l2"


@by_kind
@pytest.mark.parametrize(("options", "message"), [({"ratio": 0.0}, "ratio: got 0.0"), ({"kernel": 0}, "kernel: got 0")])
def test_refuses(kind, options, message):
    with pytest.raises(BadInput, match=f"{kind} {message}"):
        made(op(kind, **options), SPEC)
