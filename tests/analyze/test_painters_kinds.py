"""Painters on models of two streams and two kinds of blocks: one compilation for all orders, residual algebra, guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax import Sampling, api
from graftax.analyze import (
    OutputError,
    ProgramSampler,
    loop_sweep,
    single_skips,
    strategies,
    stretches,
    switches,
    trajectory,
)
from graftax.analyze.strategies import KINDS
from graftax.backbones.flux import flux_spec
from graftax.backbones.flux.frame import rope
from graftax.blocks import Context
from graftax.errors import BadInput
from graftax.models import Model, random_params
from graftax.models.backbone import find
from graftax.models.library import Library
from graftax.surgery import graft, parallel, repeat, skip

KEY = jax.random.key(0)
WIDTH, WORDS = 64, 6


@functools.cache
def model(double=4, single=6):
    """A Flux of so many blocks."""
    spec = flux_spec(
        input_size=8, in_channels=4, hidden_size=WIDTH, num_heads=4, double=double, single=single, text_width=12,
        text_tokens=WORDS, pooled_width=8,
    )  # fmt: skip
    return Model(spec, random_params(spec, KEY))


def conditions(count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"text": (count, WORDS, 12), "pooled": (count, 8)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def every_strategy(spec):
    found = [*single_skips(spec)]
    for one in stretches(spec):
        found += strategies(spec, one.centred(), seeds=(0, 1), loops=(2, 3), within=one.span)
        found += [*switches(spec, one.span), *loop_sweep(spec, one.centred()[-1], (1, 2), (1.0, 3.0))]
    return found


def test_every_strategy_of_two_kinds_in_one_compilation():
    whole = model()
    chosen = every_strategy(whole.spec)
    assert {strategy.kind for strategy in chosen} == {*KINDS, "switch"}
    assert len(chosen) > 80
    times = jnp.array([0.2, 0.9])
    inputs = [(jax.random.normal(KEY, (2, *whole.spec.image_shape)), times, jax.tree.map(jnp.asarray, conditions(2)))]
    error = OutputError(whole, inputs, bins=2)
    found = error.measure(chosen, show=False)
    assert error.compilations == 1
    assert all(deviation.error > 1e-3 and (deviation.by_time > 0).all() for deviation in found)
    assert error(whole.spec.program).error < 1e-6


def test_images_with_an_unconditional_text_that_is_given():
    """In batches of one compilation, with weights that are shared, the rewritten model's own images."""
    whole, cond, null = model(1, 2), conditions(4), conditions(1, seed=1)
    sampling = Sampling(sampler="euler", steps=2, cfg_scale=3.0, cfg_channels=None)
    weights = Library((whole.spec,)).prepare(whole.params)
    draw = ProgramSampler(whole, sampling=sampling, cond=cond, null_cond=null, rng=KEY, batch_size=2, weights=weights)
    rewrite = parallel(0, 3, 2)
    expected = api.sample(graft(whole, rewrite), cond=cond, null_cond=null, sampling=sampling, rng=KEY)
    intact, found = draw(whole.spec.program), draw(rewrite.on(whole.spec).program)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    assert np.linalg.norm(found - intact) > 0.01 * np.linalg.norm(intact)
    assert draw.compilations == 1
    with pytest.raises(BadInput, match="batch_size: got 3, expected a divisor of 4 images"):
        ProgramSampler(whole, sampling=sampling, cond=cond, null_cond=null, batch_size=3, weights=weights)


def test_trajectories_lead_away_from_the_text_that_is_given():
    whole, cond, null = model(1, 1), conditions(2), conditions(1, seed=1)
    found = list(trajectory(whole, cond=cond, null_cond=null, steps=2, cfg_scale=3.0, rng=KEY))
    assert [x.shape[0] for x, _, _ in found] == [4, 4]
    np.testing.assert_array_equal(found[1][2]["text"][2:], np.repeat(null["text"], 2, 0))
    x, t, both = found[0]
    v = whole(x, t, **both)
    one_step = x[:2] + (0.5 - 1) * (v[2:] + 3 * (v[:2] - v[2:]))  # Euler from noise fraction 1 to 1/2
    np.testing.assert_allclose(found[1][0][:2], one_step, rtol=1e-3, atol=1e-3)
    with pytest.raises(BadInput, match="Flux has none"):
        list(trajectory(whole, cond=cond, steps=2, cfg_scale=3.0))


# --- Small gates -----------------------------------------------------------------------------------------------------


@functools.cache
def at_gate():
    """(program, span, gate) -> ||h_program - h|| / ||h - x|| at the end of a span, over both streams together."""
    spec, params = model().spec, model().params
    library, rng = Library((spec,)), np.random.default_rng(0)
    start = {name: rng.standard_normal((4, n, WIDTH), np.float32) for name, n in (("txt", WORDS), ("img", spec.tokens))}
    context = Context(rng.standard_normal((4, WIDTH), np.float32), rope=rope(spec, WORDS))

    def gated(path, leaf, gate):
        if "adaln" not in jax.tree_util.keystr(path):
            return leaf
        parts = jnp.resize(jnp.array([1, 1, gate]), leaf.shape[-1] // WIDTH)  # shift, scale, gate, once or twice
        return leaf * jnp.repeat(parts, WIDTH)

    def both(state):
        return jnp.concatenate([state["txt"], state["img"]], 1)

    @jax.jit
    def run(gate, table):
        blocks = jax.tree_util.tree_map_with_path(functools.partial(gated, gate=gate), params["blocks"])
        state = library.run(library.prepare({**params, "blocks": blocks}), table, start, context)
        return both(state)

    def error(program, span, gate):
        after = len(spec.program) - span[1]
        orders = (spec.program[: span[1]], program[: len(program) - after])
        h, changed = (run(gate, library.encode(order)) for order in orders)
        x = run(gate, library.encode(spec.program[: span[0]])) if span[0] else both(start)
        return float(jnp.linalg.norm(changed - h) / jnp.linalg.norm(h - x))

    return error


@pytest.mark.parametrize("which", [0, 1, 2])
def test_small_gates_obey_the_closed_forms(which):
    """Within a kind, and across both: 1 - 1 / M in parallel, |1 - K alpha / M| looped, O(gate) for all that only reorders.

    One block in place of M of a kind, over all of these: sqrt(M - 1) in the mean square. Blocks of two kinds differ in size.
    """
    spec, error, gate = model().spec, at_gate(), 1e-3
    stretch = stretches(spec)[which]
    span, m = stretch.span, stretch.steps
    if span[0]:  # a program without any block is none
        assert error(skip(*span).on(spec).program, span, gate) == pytest.approx(1, abs=1e-6)
    for loops, alpha in ((1, 1.0), (3, 1.0), (2, 0.5)):
        program = parallel(*span, loops, alpha).on(spec).program
        assert error(program, span, gate) == pytest.approx(abs(1 - loops * alpha / m), rel=0.05), (loops, alpha)
    second = [*strategies(spec, [span], ("reverse", "random", "looped parallel"), seeds=(0,), loops=(m,)),
              *loop_sweep(spec, span, (1,), (float(m),))]  # fmt: skip
    for strategy in second:
        assert error(strategy.program, span, gate) < 5 * gate, strategy
    if stretch.joint is not None:
        errors = [error(repeat(*span, block=i).on(spec).program, span, gate) for i in range(*span)]
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt(m - 1), rel=0.05)


def test_kinds_are_switched_only_where_there_are_several():
    for single, switches_kinds in ((model(0, 2), False), (model(1, 1), True)):
        library, cond = Library((single.spec,)), find(single.spec).example(single.spec, 2)
        arrays = library.encode(), jnp.zeros((2, 8, 8, 4)), jnp.zeros(2), cond
        lowered = jax.jit(library.forward).lower(library.prepare(single.params), *arrays)
        assert ("stablehlo.case" in lowered.as_text()) == switches_kinds
