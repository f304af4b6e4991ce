"""Attention near a token and to the text, strip by strip: against dense attention under masks made pair by pair; memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.ops import tiles
from graftax.ops.attention import attend
from graftax.ops.tiles import check_image, disc_on, near_attention, window_on
from graftax.spec import Sizes

SLOW = pytest.mark.slow


def nearest(length, window, i):
    """The 2 `window` + 1 places along a side that are nearest to i, or all."""
    return sorted(range(length), key=lambda j: abs(i - j))[: 2 * window + 1]


def mask_of(kind, grid, reach, text):
    """(n, m + n), pair by pair: text is seen by all, the image by what is near."""
    near = {
        "disc": lambda a, b: (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < reach**2,
        "window": lambda a, b: max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= reach,
        "moved": lambda a, b: all(b[s] in nearest(grid[s], reach, a[s]) for s in (0, 1)),
    }[kind]
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    return np.array([[True] * text + [near(a, b) for b in places] for a in places])


def near_of(kind, grid, reach, tile):
    return disc_on(grid, reach, tile) if kind == "disc" else window_on(grid, reach, tile, moved=kind == "moved")


@pytest.mark.parametrize(
    ("kind", "grid", "reach", "text"),
    [
        ("disc", (9, 11), 4, 3), ("window", (9, 11), 2, 3), ("moved", (9, 7), 2, 3),
        *(pytest.param(*one, marks=SLOW) for one in (
            ("disc", (4, 5), 3, 4), ("disc", (9, 1), 1, 0), ("window", (5, 5), 9, 2), ("window", (9, 1), 1, 0),
            ("moved", (5, 5), 9, 2), ("moved", (3, 10), 1, 1),
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_strips", [True, pytest.param(False, marks=SLOW)])
def test_values_and_derivatives_equal_those_of_masked_attention(kind, grid, reach, text, in_strips, monkeypatch):
    if in_strips:
        monkeypatch.setattr(tiles, "DENSE_BELOW", dict.fromkeys(tiles.DENSE_BELOW, 0))
    n, rng = grid[0] * grid[1], np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(rng.standard_normal((2, m, 2, 3)), jnp.float32) for m in (n, text + n, text + n, n))
    mask = mask_of(kind, grid, reach, text)
    np.testing.assert_array_equal(near_of(kind, grid, reach, 4).mask(), mask[:, text:])

    def value_and_slopes(function):
        return jax.jit(lambda *args: [function(*args), *jax.vjp(function, *args)[1](g)])(q, k, v)

    found = value_and_slopes(lambda *args: near_attention(*args, near_of(kind, grid, reach, 4)))
    dense = value_and_slopes(lambda *args: attend(*args, mask))
    for ours, expected in zip(found, dense, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["disc", "window"])
def test_no_pass_holds_all_pairs(kind):
    def temporaries(side):
        n = side**2
        args = [jax.ShapeDtypeStruct((1, m, 1, 4), jnp.float32) for m in (n, n + 8, n + 8)]
        loss = lambda *args: near_attention(*args, near_of(kind, (side, side), 5, tiles.TILE)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(128) < 4.1 * temporaries(64) < 4 * 4096**2


def test_a_text_without_an_image_is_refused():
    with pytest.raises(BadInput, match="swa_2d: got 5 tokens of text and no image, expected an image"):
        check_image("swa_2d", Sizes(12, 2, 6, (0, 0), text=5))
