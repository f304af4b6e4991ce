"""The kernels of block-sparse attention: equal to the plain form with its gradients, and chosen where they serve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops import build, resolve
from graftax.ops.base import call
from graftax.ops.pallas import sparse
from graftax.ops.sla import chosen_blocks, sparse_attention
from graftax.ops.target import KERNELS, compiling_for
from graftax.spec import Sizes, op

BLOCK = 16
V5E = "TPU v5 lite"


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(form, g, q, k, v, chosen):
    out, back = jax.vjp(lambda q, k, v: form(q, k, v, chosen, BLOCK), q, k, v)
    return form(q, k, v, chosen, BLOCK), out, *back(g)


def arrays(n, m, heads, dtype):
    draw = np.random.default_rng(0).standard_normal
    g, q, k, v = (jnp.asarray(draw((2, tokens, heads, 20)), dtype) for tokens in (n, n, m, m))
    return g, q, k, v, chosen_blocks(q, k, BLOCK, 3)


# Two blocks at once and one left; heads laid together and alone; half a block at the end of keys and of queries.
@pytest.mark.parametrize(
    ("n", "m", "heads", "together", "dtype", "bound"),
    [(70, 90, 3, 4096, "float32", 1e-5), (80, 80, 2, 1, "float32", 1e-5), (70, 90, 2, 4096, "bfloat16", 0.02)],
)
def test_equals_the_plain_form(monkeypatch, n, m, heads, together, dtype, bound):
    monkeypatch.setattr(sparse, "AT_ONCE", 2 * BLOCK)
    monkeypatch.setattr(sparse, "TOGETHER", together)
    args = arrays(n, m, heads, dtype)
    kernel = functools.partial(sparse.block_sparse_attention, interpret=True)
    for ours, expected in zip(with_gradients(kernel, *args), with_gradients(sparse_attention, *args), strict=True):
        assert ours.dtype == expected.dtype
        ours, expected = (a.astype(jnp.float32) for a in (ours, expected))
        assert abs(ours - expected).max() < bound * abs(expected).max()


def test_several_steps_of_queries(monkeypatch):
    monkeypatch.setattr(sparse, "STEP", 8)
    args = arrays(17 * BLOCK, 5 * BLOCK, 1, "float32")  # three steps, the last one mostly padding
    kernel = functools.partial(sparse.block_sparse_attention, interpret=True)
    for ours, expected in zip(with_gradients(kernel, *args), with_gradients(sparse_attention, *args), strict=True):
        assert abs(ours - expected).max() < 1e-5 * abs(expected).max()


def uses(sizes, **options):
    made = build(resolve(op("sla", **options), "mixer", sizes), sizes)
    x = jax.ShapeDtypeStruct((1, sizes.tokens, sizes.width), jnp.float32)
    params = jax.eval_shape(made.init, jax.random.key(0), x)["params"]
    return "pallas_call" in str(jax.make_jaxpr(lambda p, x: call(made, p, x))(params, x))


def test_chosen_on_tpus_that_hold_it(monkeypatch):
    sizes = Sizes(width=144, heads=2, head_dim=72, grid=(16, 16))
    assert not uses(sizes)
    with compiling_for("tpu", V5E):
        assert uses(sizes)
        assert uses(sizes, covers="rest")
        assert not uses(sizes, block=20)
        assert not uses(Sizes(width=144, heads=2, head_dim=72, grid=(8, 8)), block=16)
        monkeypatch.setenv(KERNELS, "off")
        assert not uses(sizes)
    long = (1, 16384, 16, 72)
    assert sparse.sparse_takes(long, 64, jnp.float32, 2**27)
    assert sparse.sparse_takes(long, 64, jnp.bfloat16, 2**27)
    assert not sparse.sparse_takes(long, 64, jnp.bfloat16, 2**24)


def test_several_models_at_once():
    """Sites of a stage are one batch on TPUs."""
    g, q, k, v, chosen = arrays(48, 64, 2, "float32")
    del g
    run = lambda form: jax.jit(jax.vmap(lambda q, chosen: form(q, k, v, chosen, BLOCK)))  # noqa: E731
    queries, numbers = jnp.stack([q, -q]), jnp.stack([chosen, (chosen + 1) % 4])
    found = run(functools.partial(sparse.block_sparse_attention, interpret=True))(queries, numbers)
    np.testing.assert_allclose(found, run(sparse_attention)(queries, numbers), atol=1e-5)
