"""Short-filter Hyena mixers: definitions, gradients, initialisation, the paper's costs, published files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_golden, assert_gradients, made, weights_of

from graftax.backbones.dit import variant
from graftax.errors import BadInput
from graftax.models.cost import slot_cost
from graftax.ops import resolve
from graftax.spec import op
from graftax.testing import tiny_spec

GOLDENS = Path(__file__).parent.parent / "goldens"
SPEC = tiny_spec(hidden_size=24, num_heads=3)
XL = variant("DiT-XL/2")
KINDS = ["hyena_x", "hyena_se", "hyena_y"]


def inputs(n=SPEC.tokens):
    return np.random.default_rng(0).standard_normal((2, n, SPEC.width), np.float32)


def conv(x, p):
    """The definition of the causal filter, in float64."""
    n, taps = x.shape[1], len(p["kernel"])
    padded = np.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    return p["bias"] + sum(padded[:, i : i + n] * p["kernel"][i] for i in range(taps))


@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind, kernel):
    operator, x = made(op(kind, kernel=kernel), SPEC), inputs()
    weights = weights_of(operator)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    u = x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    q, k, v = np.split(conv(u, p["short_filter"]) if "short_filter" in p else u, 3, axis=-1)
    kv = conv(k * v, p["inner_filter"]) if "inner_filter" in p else k * v
    expected = (q * kv) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    assert ("short_filter" in p, "inner_filter" in p) == (kind != "hyena_y", kind != "hyena_x")
    np.testing.assert_allclose(operator.apply({"params": weights}, x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_numerical_differences(kind):
    operator = made(op(kind, kernel=3), SPEC)
    assert_gradients(operator, weights_of(operator), inputs())


@pytest.mark.parametrize(("kind", "reach"), [("hyena_x", 3), ("hyena_y", 3), ("hyena_se", 6)])
def test_reach(kind, reach):
    """A token sees itself and `reach` tokens before it, nothing else."""
    operator, x = made(op(kind), SPEC), inputs()
    weights = weights_of(operator)
    changed = x.copy()
    changed[:, 8] += 1
    before, after = (np.asarray(operator.apply({"params": weights}, a)) for a in (x, changed))
    differs = (before != after).any(axis=(0, 2))
    assert np.flatnonzero(differs).tolist() == list(range(8, 8 + reach + 1))


@pytest.mark.parametrize("kind", ["hyena_se", "hyena_y"])
def test_fresh_inner_filter_is_the_identity(kind):
    inner = made(op(kind), SPEC).init(jax.random.key(0), inputs())["params"]["inner_filter"]
    np.testing.assert_array_equal(inner["kernel"], np.eye(4)[3][:, None] * np.ones(SPEC.width))
    assert not inner["bias"].any()


def test_fresh_featurizer_has_torch_defaults():
    short = made(op("hyena_se"), SPEC).init(jax.random.key(0), inputs())["params"]["short_filter"]
    for leaf in short.values():
        assert 0.4 < np.abs(leaf).max() <= 0.5  # U(-1/sqrt(K), 1/sqrt(K))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near(kind):
    operator, x = made(op(kind), SPEC), inputs()
    weights = weights_of(operator)
    expected = operator.apply({"params": weights}, x)
    out = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.03 * jnp.abs(expected).max()


@pytest.mark.parametrize(
    ("kind", "params", "op_flops", "featurizer_extra"),
    [
        ("hyena_x", 5_330_304, 589_824, 24 * 256 * 1152),
        ("hyena_se", 5_336_064, 2_949_120, 24 * 256 * 1152),
        ("hyena_y", 5_318_784, 2_949_120, 0),
    ],
)
def test_cost_at_xl(kind, params, op_flops, featurizer_extra):
    cost = made(op(kind), XL).cost()
    assert (cost.params, cost.op_flops, cost.featurizer_flops) == (params, op_flops, 8 * 256 * 1152**2 + featurizer_extra)
    shapes = jax.eval_shape(made(op(kind), XL).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 256, 1152), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == params


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [
        ("hyena_se", 1.0, (-99.03, 0.26, 0.43)),
        ("hyena_se", 0.75, (-74.27, 0.20, 0.33)),
        ("hyena_se", 0.5, (-49.52, 0.13, 0.22)),
        ("hyena_x", 1.0, (-99.81, 0.26, 0.33)),
        ("hyena_y", 1.0, (-99.03, 0.0, 0.11)),
        ("hyena_y", 0.75, (-74.27, 0.0, 0.08)),
        ("hyena_y", 0.5, (-49.52, 0.0, 0.05)),
    ],
)
def test_paper_table_4(kind, ratio, expected):
    """Operator FLOPs, featurizer FLOPs and parameters against all attention, in percent (arXiv 2506.05340, Table 4)."""
    count = round(28 * ratio)
    mixer = resolve(op(kind), "mixer", XL.sizes)
    blocks = tuple(block.with_op("mixer", mixer) if i < count else block for i, block in enumerate(XL.blocks))
    before, after = slot_cost(XL, "mixer"), slot_cost(XL.replace(blocks=blocks), "mixer")
    pairs = [(getattr(before, name), getattr(after, name)) for name in ("op_flops", "featurizer_flops", "params")]
    assert [round(100 * (a / b - 1), 2) for b, a in pairs] == list(expected)


@pytest.mark.parametrize(("name", "kind"), [("hyena_se", "hyena_se"), ("hyena_x", "hyena_x"), ("hyena_y", "hyena_y")])
def test_published_layout(name, kind):
    """A whole grafted model against the reference, and its file written back bit for bit."""
    spec = assert_golden(GOLDENS / f"graft_mha_{name}_50p", 2e-5)
    assert [block["mixer"] for block in spec.blocks] == [op("mha"), op(kind, kernel=4)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_recognised_from_its_tensors(kind):
    assert_exports(op(kind, kernel=3))


def test_transplant_shares_what_both_have():
    x, y, se, wide = (made(scion, SPEC) for scion in (op("hyena_x"), op("hyena_y"), op("hyena_se"), op("hyena_x", kernel=5)))
    donor, fresh = weights_of(se), weights_of(se, seed=1)
    taken = x.transplant(weights_of(x, seed=1), se, donor)
    assert taken.keys() == {"in_proj", "out_proj", "short_filter"}
    assert all(taken[name] is donor[name] for name in taken)
    given = se.transplant(fresh, y, weights_of(y))
    assert given["short_filter"] is fresh["short_filter"]
    assert given["inner_filter"] is not fresh["inner_filter"]
    other = wide.transplant(weights_of(wide), se, donor)
    assert other["in_proj"] is donor["in_proj"]
    assert other["short_filter"]["kernel"].shape[0] == 5
    # A fresh inner filter changes nothing: Hyena-SE goes on as the Hyena-X that it replaces.
    start = se.init(jax.random.key(1), inputs())["params"]
    old = weights_of(x)
    carried = se.transplant(start, x, old)
    np.testing.assert_array_equal(se.apply({"params": carried}, inputs()), x.apply({"params": old}, inputs()))
    assert x.transplant({}, made(op("mlp"), SPEC), {}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_empty_filters(kind):
    with pytest.raises(BadInput, match=f"{kind} kernel: got 0"):
        made(op(kind, kernel=0), SPEC)
