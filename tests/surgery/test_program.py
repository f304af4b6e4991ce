"""Program rewrites against blocks composed by hand, and against what residual algebra predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.blocks import Context
from graftax.errors import BadInput
from graftax.models.stack import apply_stack
from graftax.spec import Step, op
from graftax.surgery import (
    compose,
    looped_parallel,
    painters_span,
    parallel,
    random_order,
    repeat,
    replace,
    reverse,
    skip,
)
from graftax.testing import random_params, tiny_spec

SPEC, PARAMS, _ = replace("blocks[1,4].mixer", "hyena_x")(
    tiny_spec(depth=6), random_params(tiny_spec(depth=6), jax.random.key(0)), jax.random.key(1)
)
X = jax.random.normal(jax.random.key(2), (2, 16, 48))
C = jax.random.normal(jax.random.key(3), (2, 48))


def order(spec):
    """The program as a list: a number for a plain step, the step itself otherwise."""
    return [step.blocks[0] if step == Step(step.blocks[:1]) else step for step in spec.program]


def plain(*blocks):
    return tuple(Step((i,)) for i in blocks)


@functools.partial(jax.jit, static_argnums=0)
def one_block(spec, params, x):
    return apply_stack(spec, params, {"img": x}, Context(C), plan="unroll")[0]["img"]


def f(i, x):
    """Block i on its own."""
    return one_block(SPEC.replace(blocks=(SPEC.blocks[i],), program=()), {"00": PARAMS["blocks"][f"{i:02d}"]}, x)


def by_hand(*blocks):
    x = X
    for i in blocks:
        x = f(i, x)
    return x


def stack(spec, blocks=PARAMS["blocks"]):
    return jax.jit(lambda blocks: apply_stack(spec, blocks, {"img": X}, Context(C))[0]["img"])(blocks)


def assert_stack(edit, expected):
    np.testing.assert_allclose(stack(edit.on(SPEC)), expected, rtol=1e-4, atol=1e-4)


# --- Against direct composition ----------------------------------------------------------------------------------------


def test_skip():
    assert_stack(skip(2, 4), by_hand(0, 1, 4, 5))


def test_repeat_takes_the_middle_block():
    assert_stack(repeat(1, 5), by_hand(0, 3, 3, 3, 3, 5))


def test_repeat_takes_the_block_given():
    assert order(repeat(1, 5, block=2).on(SPEC)) == [0, 2, 2, 2, 2, 5]


def test_reverse_equals_permuted_weights():
    swapped = [0, 4, 3, 2, 1, 5]
    spec = SPEC.replace(blocks=tuple(SPEC.blocks[i] for i in swapped))
    blocks = {f"{to:02d}": PARAMS["blocks"][f"{i:02d}"] for to, i in enumerate(swapped)}
    expected = stack(spec, blocks)
    assert_stack(reverse(1, 5), expected)
    assert not np.allclose(expected, by_hand(0, 1, 2, 3, 4, 5), atol=1e-2)


def test_random_order():
    edit = random_order(1, 5, seed=3)
    blocks = order(edit.on(SPEC))
    assert blocks[0] == 0
    assert blocks[5] == 5
    assert sorted(blocks) == list(range(6))
    assert_stack(edit, by_hand(*blocks))


def test_random_order_depends_on_the_seed_alone():
    spec = tiny_spec(depth=28)
    orders = [tuple(order(random_order(2, 26, seed).on(spec))) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3
    # Python's generator, as in the paper's code: what seed 0 gives never changes.
    assert orders[0] == (
        0, 1, 16, 2, 19, 9, 8, 13, 24, 23, 12, 6, 4, 22, 5, 21, 7, 20, 11, 25, 17, 18, 10, 3, 15, 14, 26, 27
    )  # fmt: skip


def test_parallel_averages_outputs():
    x = f(0, X)
    mean = (f(1, x) + f(2, x) + f(3, x)) / 3
    assert_stack(parallel(1, 4), f(5, f(4, mean)))


@pytest.mark.slow
def test_looped_parallel_feeds_the_mean_back():
    x = f(0, X)
    for _ in range(3):
        x = (f(1, x) + f(2, x)) / 2
    assert_stack(looped_parallel(1, 3), f(5, f(4, f(3, x))))
    assert looped_parallel(1, 3).on(SPEC) == parallel(1, 3, loops=3).on(SPEC)


def test_alpha_scales_the_mean_update():
    x = f(0, X)
    update = (f(1, x) + f(2, x)) / 2 - x
    assert_stack(parallel(1, 3, alpha=0.25), f(5, f(4, f(3, x + 0.25 * update))))
    summed = SPEC.replace(program=(*plain(0), Step((1, 2), "sum"), *plain(3, 4, 5)))
    np.testing.assert_allclose(stack(parallel(1, 3, alpha=2.0).on(SPEC)), stack(summed), rtol=1e-4, atol=1e-4)


# --- Positions, spans, reports -------------------------------------------------------------------------------------------


def test_rewrites_act_on_positions_of_the_current_program():
    spec = reverse(1, 3).on(skip(1, 3).on(SPEC))
    assert order(spec) == [0, 4, 3, 5]
    assert order(repeat(0, 1).on(spec)) == [3, 4, 3, 5]  # position floor(4 / 2) holds block 3
    assert order(reverse(0, 6).on(SPEC)) == [5, 4, 3, 2, 1, 0]
    joined = parallel(0, 2).on(spec)
    assert joined.program == (Step((0, 4)), *plain(3, 5))
    assert reverse(0, 3).on(joined).program == (*plain(5, 3), Step((0, 4)))


def test_rewrites_compose_with_grafts():
    edit = compose(replace("blocks[0].mixer", "hyena_x"), skip(4, 6), reverse(0, 2))
    spec, params, report = edit(SPEC, PARAMS, jax.random.key(5))
    assert order(spec) == [1, 0, 2, 3]
    assert spec.blocks[0]["mixer"] == op("hyena_x", kernel=4)
    assert [str(site) for site in report.sites] == ["blocks[0].mixer"]
    assert set(params["blocks"]) == set(PARAMS["blocks"])  # blocks that do not run keep their weights


def test_a_rewrite_returns_the_same_parameters():
    spec, params, report = skip(1, 2)(SPEC, PARAMS, jax.random.key(0))
    assert spec == skip(1, 2).on(SPEC)
    assert params is PARAMS
    assert report.new == report.dropped == report.sites == ()


def test_painters_span():
    assert painters_span(32, 15) == (16, 17)  # the paper's left-most point: one layer of Llama2-7B, number 16
    assert painters_span(24, 11) == (12, 13)
    assert painters_span(28, 0) == (1, 28)
    assert painters_span(5, 1) == (2, 4)
    lo, hi = painters_span(28, 4)
    assert hi - lo == 28 - 2 * 4 - 1
    for depth, start in ((28, 14), (4, 2), (28, -1), (1, 0)):
        with pytest.raises(BadInput, match=f"start {start} of {depth} blocks"):
            painters_span(depth, start)


def test_texts():
    edits = [
        skip(1, 2), repeat(1, 3), repeat(1, 3, block=0), reverse(0, 2), random_order(0, 3, seed=4), looped_parallel(1, 3)
    ]  # fmt: skip
    assert [str(edit) for edit in edits] == [
        "skip(1, 2)", "repeat(1, 3)", "repeat(1, 3, block=0)", "reverse(0, 2)", "random_order(0, 3, seed=4)",
        "parallel(1, 3, loops=3, alpha=1.0)",
    ]  # fmt: skip


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-1, 2), (0, 7), (6, 7)])
@pytest.mark.parametrize("rewrite", [skip, repeat, reverse, parallel, lambda lo, hi: random_order(lo, hi, 0)])
def test_illegal_spans_are_refused(span, rewrite):
    with pytest.raises(BadInput, match=r"of a program of 6 steps: expected 0 <= lo < hi <= 6"):
        rewrite(*span).on(SPEC)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (skip(0, 6), "leaves no block to run"),
        (repeat(1, 2, block=6), r"expected block ids within 0\.\.5"),
        (parallel(1, 3, loops=0), "loops: got 0, expected a positive integer"),
    ],
)
def test_impossible_rewrites_are_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        edit.on(SPEC)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "1"])
def test_a_factor_must_be_a_finite_number(alpha):
    with pytest.raises(BadInput, match=f"parallel: alpha {alpha!r}, expected a finite number"):
        parallel(1, 3, alpha=alpha)


@pytest.mark.parametrize("first", [parallel(1, 3), parallel(1, 2, loops=2), parallel(1, 2, alpha=0.5)])
def test_parallel_refuses_nesting(first):
    with pytest.raises(BadInput, match="is parallel, looped or scaled already"):
        parallel(0, 2).on(first.on(SPEC))


# --- Residual algebra --------------------------------------------------------------------------------------------------

DEPTH, START = 8, 1
LO, HI = painters_span(DEPTH, START)
M = HI - LO  # 5 blocks in the span


@functools.cache
def deep_model():
    """Eight blocks of small, nearly uncorrelated updates: random weights, gates a hundredth of their usual size."""
    spec = tiny_spec(depth=DEPTH, hidden_size=96)
    params = random_params(spec, jax.random.key(11))
    gates = jnp.repeat(jnp.array([1, 1, 0.01, 1, 1, 0.01]), 96)  # shift, scale, gate of mixer and mlp
    for block in params["blocks"].values():
        block["adaln"] = {name: leaf * gates for name, leaf in block["adaln"].items()}
    return spec, params["blocks"]


@functools.cache
def end_of_span(edit=None):
    """Tokens after the span of the program as rewritten by `edit`."""
    spec, blocks = deep_model()
    program = (spec if edit is None else edit.on(spec)).program
    shortened = spec.replace(program=program[: len(program) - (DEPTH - HI)])
    x, c = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(8, 16, 96), (8, 96)]))
    return jax.jit(lambda blocks: apply_stack(shortened, blocks, {"img": x}, Context(c))[0]["img"])(blocks)


def relative_error(edit):
    """||h_rewritten - h|| / ||h - x|| at the end of the span, x the tokens at its start."""
    h, x = end_of_span(), end_of_span(skip(LO, HI))
    return float(jnp.linalg.norm(end_of_span(edit) - h) / jnp.linalg.norm(h - x))


@pytest.mark.slow
def test_closed_forms_of_small_updates():
    """For updates d_i that are small and mutually uncorrelated, f_i(x) = x + d_i(x) gives these errors in closed form."""
    assert relative_error(skip(LO, HI)) == pytest.approx(1)
    assert relative_error(parallel(LO, HI)) == pytest.approx(1 - 1 / M, rel=0.01)
    assert relative_error(repeat(LO, HI)) == pytest.approx((M - 1) ** 0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        reverse(LO, HI),
        random_order(LO, HI, 0),
        *(pytest.param(edit, marks=pytest.mark.slow) for edit in (looped_parallel(LO, HI, M), parallel(LO, HI, 1, M))),
    ],
)
def test_order_hardly_matters_for_small_updates(edit):
    assert 0 < relative_error(edit) < 0.05
