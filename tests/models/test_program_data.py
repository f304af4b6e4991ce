"""The program as data: equal to the compiled program whatever the program, one compilation, one copy of the weights."""

import functools

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model, forward
from graftax.models.program_data import encode, forward_any, prepare_any
from graftax.spec import Step
from graftax.surgery import (
    compose,
    graft,
    lora,
    parallel,
    parallel_pairs,
    random_order,
    replace,
    reverse,
    skip,
    tie,
)
from graftax.testing import random_params, tiny_spec

KEY = jax.random.key(0)
REWRITES = (skip(1, 3), random_order(0, 4, seed=3), parallel(1, 4, loops=2, alpha=3.0))
SUMMED = (Step((2,)), Step((3, 0, 1), "sum", loops=2, alpha=0.5), Step((1,), loops=3, alpha=0.7))


def model(*edits, depth=4):
    spec = tiny_spec(depth=depth, hidden_size=16, num_heads=2)
    whole = Model(spec, random_params(spec, KEY))
    return graft(whole, compose(*edits), KEY) if edits else whole


def inputs(batch=2):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, 8, 8, 4), np.float32), np.array([3, 800][:batch]), np.array([0, 10][:batch])


@functools.cache
def expected(of, program):
    spec = of.spec.replace(program=program)
    return np.asarray(forward(spec, of.params, *inputs(), plan="unroll")[0])


def check(of, programs):
    """All programs through one jitted function; returns how often it was traced."""
    weights, traces = prepare_any(of.spec, of.params), []

    @jax.jit
    def run(weights, instructions, *args):
        traces.append(1)
        return forward_any(of.spec, weights, instructions, *args)

    for program in programs:
        found, exact = run(weights, encode(of.spec, program), *inputs()), expected(of, program)
        # Float32 rounding: the stream is summed in another order, at most a dozen updates of the size of the stream.
        assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact), program
    return len(traces)


def test_every_rewrite_of_a_mixed_model_in_one_compilation():
    mixed = model(replace("blocks[1,3].mixer", "hyena_x"), replace("blocks[2].mlp", "mlp", ratio=3.0), lora("blocks[0].mlp"))
    lively = jax.tree.map(lambda leaf: leaf + 0.1, mixed.params["lora"])
    mixed = mixed.replace(params={**mixed.params, "lora": lively})
    programs = [mixed.spec.program, SUMMED, *(rewrite.on(mixed.spec).program for rewrite in REWRITES)]
    assert len({expected(mixed, program).tobytes() for program in programs}) == len(programs)
    assert check(mixed, programs) == 1


def test_learned_projections_and_tied_blocks():
    pairs = model(parallel_pairs(0, 4), depth=5)
    drawn = random_params(pairs.spec, KEY)["merges"]
    pairs = pairs.replace(params={**pairs.params, "merges": drawn})
    programs = [pairs.spec.program, reverse(0, 3).on(pairs.spec).program]
    assert check(pairs, programs) == 1
    tied = model(tie((1, 2)))
    assert check(tied, [reverse(0, 4).on(tied.spec).program]) == 1


def test_weights_are_held_once():
    """Beside its arguments the program needs no more for 12 blocks than for 3: no copy of the weights, and no tap."""

    def memory(depth):
        whole = model(replace("blocks[1].mixer", "hyena_x"), depth=depth)
        weights = prepare_any(whole.spec, whole.params)
        run = jax.jit(functools.partial(forward_any, whole.spec))
        return run.lower(weights, encode(whole.spec), *inputs(1)).compile().memory_analysis().temp_size_in_bytes

    small, large = memory(3), memory(12)
    assert 0 < large < 1.1 * small


def test_refuses():
    whole = model()
    with pytest.raises(BadInput, match=r"expected block ids within 0\.\.3"):
        encode(whole.spec, (Step((4,)),))
    with pytest.raises(BadInput, match="4 runs of blocks, expected at most the capacity of 3"):
        encode(whole.spec, capacity=3)
    with pytest.raises(BadInput, match=r"step \(0, 1\): the model has no projection"):
        encode(whole.spec, (Step((0, 1), "project"),))
