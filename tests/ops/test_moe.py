"""Mixture of experts: token by token in numpy, sorted by expert as accelerators run it, its start as the dense MLP, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops.base import shapes_of
from graftax.ops.moe import MoE
from graftax.ops.target import compiling_for
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
X = np.random.default_rng(0).standard_normal((2, 16, 24), np.float32)


def definition(x, p, top):
    """In float64, one token after the other."""
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:2]):
        token = x[at].astype(np.float64)
        logits = token @ p["router"]["kernel"]
        asked = np.argsort(logits)[::-1][:top]
        likely = np.exp(logits[asked])
        for share, expert in zip(likely / likely.sum(), asked, strict=True):
            h = token @ p["fc1"]["kernel"][expert] + p["fc1"]["bias"][expert]
            h *= (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3))) / 2
            out[at] += share * (h @ p["fc2"]["kernel"][expert] + p["fc2"]["bias"][expert])
    return out


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("experts", "top"), [(4, 2), (3, 3), (5, 1)])
def test_equals_the_definition(platform, experts, top):
    operator = made(op("moe", experts=experts, top=top, ratio=2), SPEC)
    weights = jax.tree.map(np.asarray, weights_of(operator))
    with compiling_for(platform):
        out = jax.jit(lambda p, x: operator.apply({"params": p}, x))(weights, X)
    expected = definition(X, weights, top)
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


def test_both_forms_have_the_same_gradients():
    operator = made(op("moe", ratio=2), SPEC)
    found = []
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            loss = lambda p, x: jnp.square(operator.apply({"params": p}, x)).sum()  # noqa: E731
            found.append(jax.jit(jax.grad(loss, argnums=(0, 1)))(weights_of(operator), X))
    for ours, expected in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_gradients_and_bfloat16():
    operator = made(op("moe", ratio=2), SPEC)
    weights = weights_of(operator)
    assert_gradients(operator, weights, X[:1], step=5e-3, rtol=1e-2)
    out, expected = (jax.jit(one.apply)({"params": weights}, X) for one in (operator.with_dtype(jnp.bfloat16), operator))
    assert out.dtype == jnp.bfloat16
    # Where two experts are as likely, rounding asks the other one: most numbers, not all.
    assert (jnp.abs(out.astype(jnp.float32) - expected) < 0.02 * jnp.abs(expected).max()).mean() > 0.95


def test_starts_as_the_mlp():
    mlp, operator = made(op("mlp", ratio=2), SPEC), made(op("moe", ratio=2, experts=3), SPEC)
    donor, fresh = weights_of(mlp), weights_of(operator)
    taken = operator.transplant(fresh, mlp, donor)
    assert jax.tree.map(jnp.shape, taken) == jax.tree.map(jnp.shape, shapes_of(operator))
    dense, same = (jax.jit(one.apply)({"params": p}, X) for one, p in ((mlp, donor), (operator, taken)))
    np.testing.assert_allclose(same, dense, atol=1e-5)
    slopes = jax.jit(jax.grad(lambda p: jnp.square(operator.apply({"params": p}, X)).sum()))(taken)["fc1"]["kernel"]
    assert jnp.abs(slopes[0] - slopes[1]).max() > 0.1 * jnp.abs(slopes).max(), "experts part, for they see other tokens"
    assert operator.transplant(fresh, operator, taken) is taken
    assert operator.transplant(fresh, made(op("mlp"), SPEC), {}) is None


def test_draws_and_names():
    operator = made(op("moe", ratio=2), SPEC)
    for style, bounds in (("torch", (24**-0.5, 48**-0.5)), ("dit", ((6 / 72) ** 0.5,) * 2)):
        params = MoE(SPEC.sizes, None, style, ratio=2.0).init(jax.random.key(0), X)["params"]
        for layer, bound in zip(("fc1", "fc2"), bounds, strict=True):
            assert 0.9 * bound < abs(params[layer]["kernel"]).max() <= bound
    cost, (n, d, m) = operator.cost(), (16, 24, 48)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights_of(operator)))
    assert cost.flops == 2 * 4 * n * d * m + 2 * n * d * 4
    assert_exports(op("moe", experts=3))


def test_refuses():
    with pytest.raises(BadInput, match="moe top: got 5, expected 1 to the 4 experts"):
        made(op("moe", top=5), SPEC)
    with pytest.raises(BadInput, match=r"moe ratio: got 0\.0"):
        made(op("moe", ratio=0), SPEC)
