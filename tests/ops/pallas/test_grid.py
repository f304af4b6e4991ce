"""Attention in windows by the TPU kernel, interpreted, against dense attention under a mask: values and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops.attention import attend
from graftax.ops.pallas import plan as plan_file
from graftax.ops.pallas.grid import window_attention
from graftax.ops.pallas.plan import plan, takes
from graftax.ops.pallas.window import Band
from graftax.ops.target import KERNELS, compiling_for
from graftax.ops.tiles import disc_on, near_attention, window_on
from graftax.ops.window import banded_attention

SLOW = pytest.mark.slow
V5E = "TPU v5 lite"


def mask(seen, n, text):
    """(n, m + n): True where a query looks, by the places of all pairs."""
    rows, columns = np.divmod(np.arange(math.prod(seen.grid)), seen.grid[1])
    image = seen.sees(rows[:, None], columns[:, None], rows, columns)[:n, :n]
    return jnp.asarray(np.concatenate([np.ones((n, text), bool), image], axis=1))


def arrays(n, text=0, heads=2, width=24, batch=1, dtype=jnp.float32):
    """q, k, v, and the slope of the result."""
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.standard_normal((batch, m, heads, width)), dtype) for m in (n, text + n, text + n, n)
    ]  # fmt: skip


def with_gradients(function, q, k, v, slope):
    out, back = jax.vjp(function, q, k, v)
    return out, *back(slope.astype(out.dtype))


def errors(seen, n, text, args):
    """Of the result and the gradients of q, k and v, each over the largest number there."""
    kernel = functools.partial(window_attention, window=seen, interpret=True)
    actual = jax.jit(functools.partial(with_gradients, kernel))(*args)
    dense = functools.partial(attend, mask=mask(seen, n, text))
    expected = jax.jit(functools.partial(with_gradients, dense))(*(a.astype(jnp.float32) for a in args))
    assert [a.dtype for a in actual] == [args[0].dtype] * 4
    return [float(abs(a - e).max() / abs(e).max()) for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(
    ("seen", "text", "heads", "width", "strip"),
    [
        (Band(75, 20), 0, 1, 72, 2),  # two rows of sixteen on each side, the last one not full
        (disc_on((9, 7), 4), 3, 3, 8, 1),  # reaches three strips
        (window_on((11, 9), 2, moved=True), 0, 2, 72, 4),  # heads that share registers
        *(
            pytest.param(*sizes, marks=SLOW)
            for sizes in (
                (Band(130, 4), 0, 2, 24, 8),
                (Band(200, 4), 0, 1, 128, 4),
                (window_on((9, 12), 2), 0, 2, 24, 16),
                (window_on((11, 12), 3), 0, 2, 72, 2),
                (window_on((20, 20), 2), 0, 2, 64, 8),
                (window_on((5, 5), 9), 2, 2, 24, 8),
                (window_on((19, 33), 3, moved=True), 0, 2, 24, 16),
                (disc_on((12, 9), 4), 5, 16, 72, 8),
                (disc_on((3, 5), 100), 0, 2, 24, 4),
                (disc_on((9, 1), 1), 4, 2, 24, 4),
            )
        ),
    ],
)
def test_equals_masked_attention(monkeypatch, seen, text, heads, width, strip):
    """Grids that tiles and strips do not divide, windows past borders, heads narrower and wider than registers."""
    monkeypatch.setattr(plan_file, "_strips", lambda window: [strip])
    monkeypatch.setattr(plan_file, "QUERIES", 16 * strip)
    monkeypatch.setattr(plan_file, "core_memory", lambda: 2**27)
    n = getattr(seen, "n", math.prod(seen.grid))
    assert max(errors(seen, n, text, arrays(n, text, heads, width))) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "text"), [(window_on((16, 16), 2), 0), (disc_on((12, 12), 4), 7)])
def test_bfloat16_is_as_near_as_the_plain_form(seen, text):
    """Against float32: weights and slopes are rounded once, by 2^-9 of the largest at most, before they are summed."""
    n = math.prod(seen.grid)
    assert max(errors(seen, n, text, arrays(n, text, dtype=jnp.bfloat16))) < 2**-7


def test_mapped_arrays_are_a_larger_batch():
    """And an array that is not mapped is every one's."""
    seen, (q, k, v, _) = Band(40, 4), arrays(40, batch=4, width=8)
    apart = [a.reshape(2, 2, *a.shape[1:]) for a in (q, k)]
    run = functools.partial(window_attention, window=seen, interpret=True)
    out = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))(*apart, v[:2])
    expected = attend(q, k, jnp.concatenate([v[:2], v[:2]]), mask(seen, 40, 0))
    np.testing.assert_allclose(out.reshape(expected.shape), expected, atol=2e-6)


@pytest.mark.parametrize(
    "attention",
    [
        lambda q, k, v: banded_attention(q, k, v, 4),
        lambda q, k, v: near_attention(q, k, v, window_on((16, 16), 2)),
        lambda q, k, v: near_attention(q, k, v, disc_on((16, 16), 8)),
    ],
)
def test_operators_take_it_on_tpus_alone(monkeypatch, attention):
    def kernels_of():
        shape = jax.ShapeDtypeStruct((1, 256, 2, 72), jnp.float32)
        return "pallas_call" in str(jax.make_jaxpr(lambda *args: attention(*args))(shape, shape, shape))

    assert not kernels_of()
    with compiling_for("tpu", V5E):
        assert kernels_of()
        monkeypatch.setenv(KERNELS, "off")
        assert not kernels_of()


def test_taken_where_a_tile_is_full_and_a_strip_fits():
    def one(n, heads=16, width=72, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((1, n, heads, width), dtype)

    with compiling_for("tpu", V5E):
        for seen, n in ((Band(256, 4), 256), (window_on((128, 128), 2), 2**14), (disc_on((128, 128), 8), 2**14)):
            assert takes(one(n), one(n), seen)
        assert not takes(one(64), one(64), Band(64, 4))
        assert not takes(one(2**14), one(2**14), disc_on((128, 128), 32))
        assert takes(one(4096, 24, 128), one(4608, 24, 128), disc_on((64, 64), 32)), "heads one by one"
        assert not takes(one(256, dtype=jnp.float16), one(256, dtype=jnp.float16), Band(256, 4))
    with compiling_for("tpu", "TPU v4"):
        assert takes(one(256), one(256), Band(256, 4))
        assert not takes(one(2**14), one(2**14), window_on((128, 128), 2))


def test_strips_shrink_with_the_chip():
    def strip(kind, backward):
        with compiling_for("tpu", kind):
            return plan(window_on((128, 128), 2), 16, 72, 0, 2, backward=backward)

    large, small = strip(V5E, True), strip("TPU v5", True)
    assert large.memory(2, backward=True) < 96 * 2**20
    assert small.memory(2, backward=True) < 48 * 2**20
    assert small.strip < large.strip
