"""The kernel of Hyena-X: equal to the operator's plain form with its gradients, and chosen where it serves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops import build, resolve
from graftax.ops.base import call
from graftax.ops.conv import causal_conv
from graftax.ops.pallas import hyena
from graftax.ops.placement import placing
from graftax.ops.target import KERNELS, compiling_for
from graftax.spec import Sizes, op

D = 128
SIZES = Sizes(width=D, heads=2, head_dim=64, grid=(16, 8))
V5E = "TPU v5 lite"


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(hyena, "TILE", 32)


def plain(x, weights, bias, taps, taps_bias):
    u = x @ weights.astype(x.dtype) + bias.astype(x.dtype)
    q, k, v = jnp.split(causal_conv(u, taps, taps_bias), 3, axis=-1)
    return q * (k * v)


def arrays(n, dtype, taps):
    draw = np.random.default_rng(0).standard_normal
    x, g = (jnp.asarray(draw((2, n, D)), dtype) for _ in range(2))
    shapes = ((D, 3 * D), D**-0.5), ((3 * D,), 1), ((taps, 3 * D), taps**-0.5), ((3 * D,), 1)
    return g, (x, *(jnp.asarray(scale * draw(shape), jnp.float32) for shape, scale in shapes))


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(form, g, *args):
    """The result without gradients, with them, and the gradients of all arguments."""
    out, back = jax.vjp(form, *args)
    return form(*args), out, *back(g)


# Half precision has 8 bits: the plain form rounds after every step, the kernel at u and at the end.
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("n", "dtype", "taps", "bound"), [(75, "float32", 4, 1e-5), (64, "bfloat16", 3, 0.03)])
def test_equals_the_plain_form_across_tiles(n, dtype, taps, bound):
    g, args = arrays(n, dtype, taps)
    found = with_gradients(lambda *args: hyena.gated_conv(*args, True), g, *args)
    for ours, expected in zip(found, with_gradients(plain, g, *args), strict=True):
        assert ours.dtype == expected.dtype
        ours, expected = (a.astype(jnp.float32) for a in (ours, expected))
        assert abs(ours - expected).max() < bound * abs(expected).max()


def operator(kind="hyena_x", **options):
    made = build(resolve(op(kind, **options), "mixer", SIZES), SIZES)
    return made, jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, 128, D)))["params"]


def uses(made, params, tokens=128):
    x = jax.ShapeDtypeStruct((2, tokens, D), jnp.float32)
    return "pallas_call" in str(jax.make_jaxpr(lambda p, x: call(made, p, x))(params, x))


def test_chosen_on_tpus_that_hold_it(monkeypatch):
    made, params = operator()
    assert not uses(made, params)
    with compiling_for("tpu", V5E):
        assert uses(made, params)
        assert not uses(made, params, tokens=64)
        assert not uses(*operator(kernel=17))
        assert not uses(*operator("hyena_se"))
        with placing(None, None, {"hidden": 2}.get):
            assert not uses(made, params)
        monkeypatch.setenv(KERNELS, "off")
        assert not uses(made, params)
    assert hyena.hyena_takes((1, 256, 1152), 4, 2**27)
    assert not hyena.hyena_takes((1, 256, 1152), 4, 2**26)
    assert not hyena.hyena_takes((1, 256, 1536), 4, 2**27)
    assert not hyena.hyena_takes((1, 256, 1100), 4, 2**27)


@pytest.mark.usefixtures("small_tiles")
def test_the_operator_with_it_is_the_same(monkeypatch):
    made, shapes = operator()
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 128, D)), jnp.float32)
    params = jax.jit(made.init)(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    # Sites of a stage are one batch on TPUs: two operators at once.
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    run = lambda params, x: jax.vmap(lambda p: call(made, p, x))(params)  # noqa: E731
    expected = jax.jit(run)(both, x)
    monkeypatch.setattr(hyena, "gated_conv", functools.partial(hyena.gated_conv, interpret=True))
    with compiling_for("tpu", V5E):
        found = jax.jit(lambda params, x: run(params, x))(both, x)
    assert abs(found - expected).max() < 1e-5 * abs(expected).max()
