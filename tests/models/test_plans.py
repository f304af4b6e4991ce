"""Execution plans: where the stack is cut, and that every cut computes the same, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.blocks import Context, resolve_all
from graftax.errors import BadInput
from graftax.models.plans import Segment, segments
from graftax.models.stack import REMAT, apply_stack, prepare, run_stack, runs, tap_names, tap_runs
from graftax.spec import Step, op
from graftax.testing import assert_trees_close, random_params, tiny_spec

SLOW = pytest.mark.slow
D, N, B = 8, 16, 2
KINDS = {"a": op("mha"), "h": op("hyena_x"), "s": op("swa", window=2)}
TAPS = ("block/in", "mixer/in", "mixer/out", "mlp/in", "mlp/out", "block/out")


def stack(pattern, mlps="", **changes):
    """A spec whose block i has mixer `pattern[i]` ("a" attention, "h" Hyena-X, "s" window), and MLP ratio `mlps[i]`."""
    spec = tiny_spec(depth=len(pattern), hidden_size=D, num_heads=2)
    mlps = mlps or "4" * len(pattern)
    blocks = tuple(
        block.with_op("mixer", KINDS[m]).with_op("mlp", op("mlp", ratio=float(r)))
        for block, m, r in zip(spec.blocks, pattern, mlps, strict=True)
    )
    return resolve_all(spec.replace(**{"blocks": blocks, "program": (), **changes}))


def tokens():
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, N, D), np.float32), rng.standard_normal((B, D), np.float32)


def weights(spec):
    return random_params(spec, jax.random.key(0))["blocks"]


def run(spec, params, x, c, **options):
    state, taps = apply_stack(spec, params, {"img": x}, Context(c), **options)
    return state["img"], taps


@functools.cache
def passed(spec, capture=(), **options):
    """Output and taps."""
    return jax.jit(lambda params, x, c: run(spec, params, x, c, capture=capture, **options))(weights(spec), *tokens())


@functools.cache
def outcome(spec, **options):
    """Output, taps, and the gradients of parameters and input of a loss on both, compiled as one."""
    x, c = tokens()

    def loss(params, x):
        out, taps = run(spec, params, x, c, capture=TAPS, **options)
        weigh = lambda a: jnp.sum(jnp.cos(jnp.arange(a.size).reshape(a.shape)) * a)  # noqa: E731
        return weigh(out) + sum(weigh(tap) for tap in taps.values()), (out, taps)

    (_, (out, taps)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(weights(spec), x)
    return out, taps, grads


def singly(spec, order):
    """Function x -> outputs of blocks, each alone on x."""
    c, params = tokens()[1], weights(spec)
    each = [spec.replace(program=(Step((i,)),)) for i in order]
    return jax.jit(lambda x: [run(one, params, x, c, plan="unroll")[0] for one in each])


# --- Cutting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "plan", "expected"),
    [
        ("aaaa", "auto", [("unroll", 4, 1)]),
        ("aaaaa", "auto", [("periodic", 5, 1)]),
        ("ahahah", "auto", [("periodic", 6, 2)]),
        ("aaahhh", "auto", [("periodic", 3, 1), ("periodic", 3, 1)]),
        ("aahahhah", "auto", [("kinds", 8, 1)]),
        ("aahahhah", "unroll", [("unroll", 8, 1)]),
        ("aahahhah", "segments", [("periodic", 2, 1), *[("unroll", 1, 1)] * 2, ("periodic", 2, 1), *[("unroll", 1, 1)] * 2]),
        ("aaaaaa", "superblock", [("periodic", 6, 1)]),
        ("aahaah", "superblock", [("periodic", 6, 3)]),
        ("aaaaaa", "scan", [("periodic", 6, 1)]),
        ("aaaaaa", "kind_scan", [("kinds", 6, 1)]),
    ],
)
def test_cuts(pattern, plan, expected):
    found = segments(stack(pattern), plan)
    assert [(s.mode, len(s.ids), s.period) for s in found] == expected
    assert [i for s in found for i in s.ids] == list(range(len(pattern)))


def test_other_steps_are_segments_of_their_own():
    step = Step((1, 2))
    spec = stack("aaaaaa", program=(Step((0,)), step, Step((3,), loops=2), Step((5,)), Step((4,))))
    found = segments(spec, "scan")
    assert found[1] == Segment("parallel", (1, 2), step=step)
    assert [(s.mode, s.ids) for s in found] == [
        ("periodic", (0,)), ("parallel", (1, 2)), ("parallel", (3,)), ("periodic", (5, 4))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "plan", "message"),
    [("aa", "fast", "plan: got 'fast'"), ("ah", "scan", "2 kinds"), ("ahhaa", "superblock", "repeat no pattern")],
)
def test_plans_that_do_not_fit(pattern, plan, message):
    with pytest.raises(BadInput, match=message):
        segments(stack(pattern), plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"capture": ("mixer/mid",)}, "unknown taps.*mixer/mid"), ({"remat": "some"}, "remat: got 'some'")],
)
def test_unknown_taps_and_policies(options, message):
    spec = stack("a")
    with pytest.raises(BadInput, match=message):
        run(spec, weights(spec), *tokens(), **options)


# --- Equality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "mlps", "plans"),
    [pytest.param("ahah", "", ("superblock",), marks=SLOW), ("ahh", "433", ("segments", "kind_scan"))],
)
def test_plans_agree(pattern, mlps, plans):
    spec = stack(pattern, mlps)
    expected = outcome(spec, plan="unroll")
    for plan in plans:
        assert_trees_close(outcome(spec, plan=plan), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pattern", "plan"),
    [pytest.param("aaa", "scan", marks=SLOW), pytest.param("aaaaa", "auto", marks=SLOW), ("aahhss", "segments")],
)
def test_longer_stacks_agree(pattern, plan):
    spec = stack(pattern)
    found, expected = (passed(spec, TAPS, plan=one) for one in (plan, "unroll"))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_kind_scan_on_a_random_graft():
    rng = np.random.default_rng(0)
    spec = stack("".join(rng.choice(list("ahs"), 5)), "".join(rng.choice(list("24"), 5)))
    found, expected = (passed(spec, TAPS, plan=plan) for plan in ("kind_scan", "unroll"))
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "remat", ["full", *(pytest.param(name, marks=SLOW) for name in REMAT if name not in ("none", "full"))]
)
def test_remat_changes_nothing(remat):
    spec = stack("aa")
    found, expected = outcome(spec, plan="kind_scan", remat=remat), outcome(spec, plan="kind_scan")
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)


def test_remat_recomputes():
    """Without it, every block's logits wait for the backward pass; with it, they are computed a second time."""

    def exponentials(remat):
        spec, (x, c) = stack("aa"), tokens()
        loss = lambda p: run(spec, p, x, c, plan="unroll", remat=remat)[0].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(weights(spec))).count(" exp ")

    assert exponentials("full") > exponentials("none") > 0


# --- Taps and programs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [pytest.param("unroll", marks=SLOW), "kind_scan"])
def test_taps_follow_the_program(plan):
    order = (3, 0, 0, 2, 5)
    spec = stack("ahahas", program=tuple(Step((i,)) for i in order))
    out, taps = passed(spec, ("block/out", "mixer/in"), plan=plan)
    assert set(taps) == {"block/out", "mixer/in"}
    assert runs(spec) == tap_runs(spec, "block/out") == tap_runs(spec, "mixer/in") == order
    assert set(tap_names(spec)) == {*TAPS, *(f"norm{i}/{end}" for i in (1, 2) for end in ("in", "out"))}
    after = singly(spec, range(6))
    x = tokens()[0]
    for row, i in enumerate(order):
        x = after(x)[i]
        np.testing.assert_allclose(taps["block/out"][row], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-4)
    assert taps["mixer/in"].shape == (len(order), B, N, D)


@pytest.mark.parametrize(
    ("merge", "loops", "alpha"),
    [pytest.param("mean", 1, 1.0, marks=SLOW), ("mean", 2, 0.5), pytest.param("sum", 3, 0.7, marks=SLOW)],
)
def test_parallel_steps(merge, loops, alpha):
    """Against the definition of `Step`: blocks read one input, their changes of it are merged."""
    spec = stack("ahsa", program=(Step((0,)), Step((1, 2, 3), merge, loops, alpha)))
    out, taps = passed(spec, ("block/out",), plan="auto")
    after = singly(spec, range(4))
    x = after(tokens()[0])[0]
    rows = [x]
    for _ in range(loops):
        outs = after(x)[1:]
        rows += outs
        x = x + alpha * sum(o - x for o in outs) / (3 if merge == "mean" else 1)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(taps["block/out"], np.stack(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_unused_blocks_get_zero_gradients():
    spec = stack("aha", program=(Step((0,)), Step((2,))))
    _, _, (grads, _) = outcome(spec, plan="kind_scan")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["01"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["02"]["adaln"]))


@pytest.mark.slow
def test_prepared_weights_serve_many_passes():
    spec = stack("aahh")
    x, c = tokens()
    prepared = prepare(spec, weights(spec), "kind_scan")
    assert {segment.mode for segment in prepared.segments} == {"kinds"}
    state, _ = jax.jit(lambda prepared, x: run_stack(spec, prepared, {"img": x}, Context(c)))(prepared, x)
    np.testing.assert_allclose(state["img"], passed(spec, plan="unroll")[0], rtol=1e-4, atol=1e-4)
