"""Attention in windows: both forms of the band, and the window over the image grid, against dense attention with a mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import IMG, TXT, attention, built, heads_of, in_square, visible
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops import resolve
from graftax.ops import window as window_file
from graftax.ops.attention import attend
from graftax.ops.tiles import moved_side, near_attention, window_on
from graftax.ops.window import banded_attention
from graftax.spec import op
from graftax.testing import tiny_spec

SLOW = pytest.mark.slow


def qkv(n, heads=2, width=3, batch=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((batch, n, heads, width)), dtype) for _ in range(3)]


def masked(args, mask):
    return attend(*(a.astype(jnp.float32) for a in args), mask)


def both(function, args, directions):
    """Value and derivative along `directions`, compiled as one: much quicker than operation by operation."""
    return jax.jit(lambda args, directions: jax.jvp(function, args, directions))(args, directions)


def near(n, window):
    token = np.arange(n)
    return abs(token[:, None] - token) <= window


@pytest.mark.parametrize(
    ("n", "window", "block"),
    [
        (3, 4, None),
        (33, 4, None),
        *(pytest.param(*sizes, marks=SLOW) for sizes in ((32, 4, None), (71, 4, 16), (64, 20, 8))),
    ],
)
def test_plain_and_differentiated_bands_agree(monkeypatch, n, window, block):
    """On CPU the plain call loops over blocks, `jvp` takes all at once: values and derivatives are those of the mask."""
    monkeypatch.setattr(window_file, "LOOP_FROM", 0)
    args, directions = qkv(n), qkv(n)[::-1]
    bands = functools.partial(banded_attention, window=window, block=block)
    dense = lambda *args: masked(args, near(n, window))  # noqa: E731
    expected, expected_change = both(dense, args, directions)
    out, change = both(bands, args, directions)
    for actual in (out, jax.jit(bands)(*args), jax.jit(jax.vmap(bands))(*(a[:, None] for a in args))[:, 0]):
        np.testing.assert_allclose(actual, expected, atol=3e-6)
    np.testing.assert_allclose(change, expected_change, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [pytest.param(7, marks=SLOW), 50])
def test_bands_in_bfloat16(monkeypatch, n):
    monkeypatch.setattr(window_file, "LOOP_FROM", 0)
    args = qkv(n, dtype=jnp.bfloat16)
    bands = functools.partial(banded_attention, window=4)
    for out in (jax.jit(bands)(*args), both(bands, args, args)[0]):
        assert out.dtype == jnp.bfloat16
        assert abs(out.astype(jnp.float32) - masked(args, near(n, 4))).max() < 0.03


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all blocks run at once")
def test_bands_on_cpu_work_in_constant_memory():
    def temporaries(n):
        shape = jax.ShapeDtypeStruct((1, n, 4, 16), jnp.float32)
        run = jax.jit(functools.partial(banded_attention, window=4)).lower(shape, shape, shape).compile()
        return run.memory_analysis().temp_size_in_bytes

    assert temporaries(8192) == temporaries(1024) < 1024 * 4 * 16 * 4


# --- The window over the image grid ------------------------------------------------------------------------------------

SPEC = tiny_spec(input_size=12, hidden_size=24, num_heads=3)  # 6 x 6 tokens


def near_2d(grid, window):
    """(n, n): True where neither rows nor columns differ by more than `window`, pair by pair."""
    places = [divmod(i, grid[1]) for i in range(grid[0] * grid[1])]
    return np.array([[max(abs(r - s), abs(c - d)) <= window for s, d in places] for r, c in places])


@pytest.mark.parametrize(
    ("grid", "window", "tile"),
    [
        ((1, 1), 1, 8),
        ((9, 9), 3, 2),
        ((11, 4), 2, 3),
        *(pytest.param(*sizes, marks=SLOW) for sizes in (((4, 4), 1, 8), ((7, 7), 2, 4), ((5, 5), 9, 3), ((3, 10), 1, 8))),
    ],
)
def test_grid_windows_equal_masked_attention(grid, window, tile):
    n = grid[0] * grid[1]
    args, directions = qkv(n), qkv(n)[::-1]
    dense = lambda *args: masked(args, near_2d(grid, window))  # noqa: E731
    expected = both(dense, args, directions)
    out = both(lambda *args: near_attention(*args, window_on(grid, window, tile)), args, directions)
    np.testing.assert_allclose(out[0], expected[0], atol=3e-6)
    np.testing.assert_allclose(out[1], expected[1], atol=1e-5)


def nearest_2d(grid, window):
    """(n, n): True for the 2 `window` + 1 nearest rows and the as many nearest columns."""
    rows, columns = (
        [sorted(range(length), key=lambda j, i=i: abs(i - j))[: 2 * window + 1] for i in range(length)] for length in grid
    )
    places = [divmod(i, grid[1]) for i in range(grid[0] * grid[1])]
    return np.array([[s in rows[r] and d in columns[c] for s, d in places] for r, c in places])


@pytest.mark.parametrize(
    ("grid", "window", "tile"),
    [((9, 9), 3, 2), ((11, 4), 2, 3), *(pytest.param(*sizes, marks=SLOW) for sizes in (((8, 16), 3, 8), ((5, 5), 9, 3)))],
)
def test_moved_windows_equal_masked_attention(grid, window, tile):
    n = grid[0] * grid[1]
    args, directions, mask = qkv(n), qkv(n)[::-1], nearest_2d(grid, window)
    assert len({*mask.sum(1)}) == 1, "as many for each"
    expected = both(lambda *args: masked(args, mask), args, directions)
    out = both(lambda *args: near_attention(*args, window_on(grid, window, tile, moved=True)), args, directions)
    np.testing.assert_allclose(out[0], expected[0], atol=3e-6)
    np.testing.assert_allclose(out[1], expected[1], atol=1e-5)


def test_tiles_that_fill_the_grid_meet_no_more_keys_when_windows_move():
    for length, window in ((16, 2), (64, 7), (32, 3)):
        assert moved_side(length, 8, window).window == window
    assert moved_side(9, 8, 2).window == 4


@pytest.mark.slow
def test_grid_windows_in_bfloat16():
    args = qkv(49, dtype=jnp.bfloat16)
    out = jax.jit(functools.partial(near_attention, near=window_on((7, 7), 2, tile=4)))(*args)
    assert out.dtype == jnp.bfloat16
    assert abs(out.astype(jnp.float32) - masked(args, near_2d((7, 7), 2))).max() < 0.03


def test_grid_windows_never_hold_all_pairs():
    def largest(side):
        shape = jax.ShapeDtypeStruct((1, side**2, 1, 4), jnp.float32)
        loss = lambda q, k, v: near_attention(q, k, v, window_on((side, side), 2)).sum()  # noqa: E731
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(shape, shape, shape)
        return max(np.prod(var.aval.shape) for eqn in jaxpr.eqns for var in eqn.outvars)

    assert largest(128) <= 4.1 * largest(64) < 4096**2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swa_2d", "natten"])
def test_swa_2d_gradients(kind):
    scion = made(op(kind, window=1), SPEC)
    x = np.random.default_rng(0).standard_normal((2, SPEC.tokens, SPEC.width), np.float32)
    assert_gradients(scion, weights_of(scion), x, step=0.05)


def test_swa_2d_takes_over_attention():
    names = op("mha"), op("swa_2d", window=5), op("swa_2d", window=1), op("natten", window=1)
    mha, wide, narrow, moved = (made(scion, SPEC) for scion in names)
    weights = weights_of(mha)
    taken = wide.transplant({}, mha, weights)
    assert all(jax.tree.leaves(jax.tree.map(lambda own, donor: own is donor, taken, weights)))
    x = np.random.default_rng(0).standard_normal((2, SPEC.tokens, SPEC.width), np.float32)
    dense, far, close, all_9 = (jax.jit(scion.apply)({"params": weights}, x) for scion in (mha, wide, narrow, moved))
    np.testing.assert_allclose(far, dense, atol=1e-5)
    assert abs(close - dense).max() > 0.01
    inside = np.pad(np.ones((4, 4), bool), 1).ravel()  # where no window reaches over the border
    np.testing.assert_allclose(all_9[:, inside], close[:, inside], atol=1e-5)
    assert abs(all_9 - close)[:, ~inside].max(axis=(0, 2)).min() > 1e-3


def test_swa_2d_cost_counts_whole_windows():
    swa, swa_2d = (made(scion, SPEC).cost() for scion in (op("swa", window=4), op("swa_2d", window=1)))
    assert swa_2d == swa  # 2 * 4 + 1 = (2 * 1 + 1)^2 keys
    assert made(op("swa_2d", window=99), SPEC).cost() == made(op("mha"), SPEC).cost()


def test_swa_2d_is_not_taken_for_swa():
    assert_exports(op("swa_2d", window=2))
    assert_exports(op("natten", window=2))
    assert_exports(op("swa", window=4))


def test_swa_2d_refuses():
    with pytest.raises(BadInput, match="swa_2d window: got 0"):
        made(op("swa_2d", window=0), SPEC)
    with pytest.raises(BadInput, match="swa_2d: got 5 tokens of text and no image"):
        resolve(op("swa_2d"), "mixer", dataclasses.replace(SPEC.sizes, grid=(0, 0), text=5))


@pytest.mark.parametrize("kind", ["swa_2d", "natten"])
def test_with_a_text_equals_masked_attention(kind):
    """The 5 tokens of text see and are seen by all; the 2 x 3 of the image their windows, moved inwards in `natten`."""
    operator, p = built(kind, window=1)
    x = np.concatenate([TXT, IMG], axis=1)
    mask = visible(in_square(1)) if kind == "swa_2d" else np.ones((11, 11), bool)  # 3 columns are in every moved window
    expected = attention(*heads_of(x, p, "none"), mask) @ p["proj"]["kernel"] + p["proj"]["bias"]
    np.testing.assert_allclose(operator.apply({"params": p}, x), expected, atol=1e-5)
    pairs = 5 * 11 + 6 * (5 + 2 * 3)  # whole windows, of which two rows are there
    assert operator.cost().op_flops == pairs * (4 * 12 + 2 * 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swa_2d", "natten"])
def test_gradients_with_a_text(kind):
    operator, weights = built(kind, window=1)
    assert_gradients(operator, jax.tree.map(lambda a: a / 2, weights), np.concatenate([TXT, IMG], axis=1), step=0.05)
