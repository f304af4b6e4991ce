"""Painters' strategies: each the rewritten model, all in one compilation; errors that residual algebra foretells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax import Sampling, api
from graftax.analyze.painters import OutputError, ProgramSampler
from graftax.analyze.strategies import (
    KINDS,
    all_spans,
    centred_spans,
    loop_sweep,
    single_skips,
    strategies,
    switches,
)
from graftax.blocks import Context
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.library import Library
from graftax.spec import Step
from graftax.surgery import graft, replace, skip
from graftax.testing import random_params, tiny_spec

KEY = jax.random.key(0)


@functools.cache
def model():
    """A grafted model of three kinds of blocks."""
    spec = tiny_spec(depth=6, hidden_size=16, num_heads=2)
    whole = Model(spec, random_params(spec, KEY))
    return graft(graft(whole, replace("blocks[50%].mixer", "hyena_x"), KEY), replace("blocks[2].mlp", "mlp", ratio=2.0), KEY)


def inputs():
    rng = np.random.default_rng(0)
    times = ([5, 300], [310, 990])
    cond = {"y": jnp.array([1, 10])}
    return [(jnp.asarray(rng.standard_normal((2, 8, 8, 4), np.float32)), jnp.array(t), cond) for t in times]


def noise_of(model):
    return np.concatenate([model(x, t, **cond)[..., :4] for x, t, cond in inputs()])


def test_every_strategy_in_one_compilation():
    whole = model()
    spec = whole.spec
    chosen = [
        *strategies(spec, [(1, 5), (0, 2)], seeds=(0, 1), loops=(2, 3)), *single_skips(spec), *switches(spec),
        *loop_sweep(spec, (2, 5), (1, 2), (1.0, 3.0)),
    ]  # fmt: skip
    assert {strategy.kind for strategy in chosen} == {*KINDS, "switch"}
    error = OutputError(whole, inputs(), bins=2)
    found = error.measure(chosen, show=False)
    assert error.compilations == 1
    assert len({deviation.error for deviation in found}) > len(chosen) // 2
    intact = noise_of(whole)
    for strategy, deviation in list(zip(chosen, found, strict=True))[::29]:
        rewritten = whole.replace(spec=spec.replace(program=strategy.program))
        noise = noise_of(rewritten)
        assert deviation.error == pytest.approx(np.linalg.norm(noise - intact) / np.linalg.norm(intact), rel=1e-4), strategy
        cosine = (noise * intact).sum() / np.linalg.norm(noise) / np.linalg.norm(intact)
        assert deviation.cosine == pytest.approx(cosine, abs=1e-4)
        late = np.linalg.norm((noise - intact)[3]) / np.linalg.norm(intact[3])  # the one input with t >= 500
        assert deviation.by_time[1] == pytest.approx(late, rel=1e-4)
    assert error(spec.program).error < 1e-5


@pytest.mark.parametrize("sampler", [pytest.param("ddpm", marks=pytest.mark.slow), "dpmpp_2m"])
def test_images_are_those_of_the_rewritten_model(sampler):
    whole, labels = model(), [1, 2, 3]
    sampling = Sampling(sampler=sampler, steps=3)
    draw = ProgramSampler(whole, labels, sampling, rng=KEY)
    rewrite = skip(1, 3)
    expected = api.sample(graft(whole, rewrite), labels, sampling=sampling, rng=KEY)
    intact, skipped = draw(whole.spec.program), draw(rewrite.on(whole.spec).program)
    assert draw.compilations == 1
    assert np.linalg.norm(skipped - expected) < 1e-4 * np.linalg.norm(expected)
    assert np.linalg.norm(skipped - intact) > 0.1 * np.linalg.norm(intact)


# --- Small gates: residual algebra alone says what every strategy costs -----------------------------------------------


@functools.cache
def span(m):
    """A function (strategy's kind or program, gate) -> ||h_strategy - h|| / ||h - x||, h after m blocks that read x.

    The blocks' updates are random, about `gate` times the size of x.
    """
    spec = tiny_spec(depth=m, hidden_size=96)
    params, library = random_params(spec, KEY), Library((spec,))
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((4, 16, 96), np.float32), rng.standard_normal((4, 96), np.float32)

    @jax.jit
    def run(gate, table):
        gates = jnp.repeat(jnp.array([1, 1, gate, 1, 1, gate]), spec.width)
        blocks = {
            key: {**block, "adaln": jax.tree.map(lambda leaf: leaf * gates, block["adaln"])}
            for key, block in params["blocks"].items()
        }
        prepared = library.prepare({**params, "blocks": blocks})
        return library.run(prepared, table, {"img": x}, Context(c))["img"]

    def error(order, gate, **options):
        if isinstance(order, str):
            (order,) = (strategy.program for strategy in strategies(spec, [(0, m)], (order,), **options))
        h = run(gate, library.encode())
        return float(jnp.linalg.norm(run(gate, library.encode(order)) - h) / jnp.linalg.norm(h - x))

    return spec, error


@pytest.mark.parametrize("m", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_small_gates_obey_the_closed_forms(m):
    """A share of the update is missing: all of it where nothing changes x (skip), 1 - 1 / M in parallel, |1 - K alpha / M|
    when looped. One block in place of M with uncorrelated updates: sqrt(M - 1)."""
    spec, error = span(m)
    gate = 1e-3
    assert error((Step((0,), alpha=0.0),), gate) == pytest.approx(1, abs=1e-6)
    assert error("parallel", gate) == pytest.approx(1 - 1 / m, rel=0.02)
    for k, alpha in ((3, 1.0), (3, 0.5), (1, float(m))):
        (looped,) = loop_sweep(spec, (0, m), (k,), (alpha,))
        assert error(looped.program, gate) == pytest.approx(abs(1 - k * alpha / m), rel=0.02, abs=0.01)
    assert error("middle repeat", gate) == pytest.approx(np.sqrt(m - 1), rel=0.15)  # random updates are not quite orthogonal


def test_order_is_of_second_order():
    """Reversed, shuffled, added up or looped M times: the error is proportional to the gate."""
    spec, error = span(8)
    orders = {
        "reverse": "reverse", "random": "random", "summed": loop_sweep(spec, (0, 8), (1,), (8.0,))[0].program,
        "looped": loop_sweep(spec, (0, 8), (8,), (1.0,))[0].program,
    }  # fmt: skip
    for name, order in orders.items():
        large, small = (
            error(order, gate, seeds=(0,)) if isinstance(order, str) else error(order, gate) for gate in (0.02, 0.01)
        )
        assert small < 0.1, name
        assert large / small == pytest.approx(2, rel=0.1), name


# --- Spans -------------------------------------------------------------------------------------------------------------


def test_spans():
    assert centred_spans(8) == ((4, 5), (3, 6), (2, 7), (1, 8))
    assert centred_spans(9) == ((4, 6), (3, 7), (2, 8), (1, 9))
    assert all_spans(3) == ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))
    assert all_spans(3, least=2) == ((0, 2), (1, 3))


def test_middle_repeat_takes_the_middle_block():
    """The program's where the span holds it (the paper's floor(T / 2)), the span's own elsewhere."""
    spec = tiny_spec(depth=8)
    middles = {span: strategy.program[span[0]] for span in all_spans(8) for strategy in strategies(spec, [span], KINDS[1:2])}
    assert middles[2, 7] == middles[4, 5] == middles[0, 5] == Step((4,))
    assert (middles[0, 3], middles[5, 8], middles[0, 4]) == (Step((1,)), Step((6,)), Step((2,)))


def test_refuses():
    whole = model()
    with pytest.raises(BadInput, match="'shuffle', expected some of"):
        strategies(whole.spec, [(0, 2)], ("shuffle",))
    with pytest.raises(BadInput, match=r"span \[4, 9\)"):
        strategies(whole.spec, [(4, 9)], ("middle repeat",))
    with pytest.raises(BadInput, match="painters: no inputs"):
        OutputError(whole, [])
    with pytest.raises(BadInput, match=r"y: \[11\]"):
        ProgramSampler(whole, [11])
    merged = whole.spec.replace(program=(Step((0, 1)), *whole.spec.program[2:]))
    with pytest.raises(BadInput, match="parallel, looped or scaled already"):
        strategies(merged, [(0, 2)], ("parallel",))
    with pytest.raises(BadInput, match="runs several blocks"):
        strategies(merged, [(0, 1)], ("middle repeat",))
    assert single_skips(tiny_spec(depth=1)) == ()
