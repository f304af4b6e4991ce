"""The program as data: equal to the compiled program whatever the program, one compilation, one copy of the weights."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model, forward
from graftax.models.library import Library
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
    return rng.standard_normal((batch, 8, 8, 4), np.float32), np.array([3, 800][:batch]), {"y": np.array([0, 10][:batch])}


def expected(of, programs):
    """Outputs of the compiled programs, all in one compilation."""
    each = [of.spec.replace(program=program) for program in programs]
    return jax.jit(lambda params: [forward(spec, params, *inputs(), plan="unroll")[0] for spec in each])(of.params)


def check(of, programs):
    """All programs through one jitted function, traced once."""
    library, traces = Library((of.spec,)), []
    weights = library.prepare(of.params)

    @jax.jit
    def run(weights, instructions, *args):
        traces.append(1)
        return library.forward(weights, instructions, *args)

    wanted = expected(of, programs)
    assert len({np.asarray(out).tobytes() for out in wanted}) == len(programs)
    for program, exact in zip(programs, wanted, strict=True):
        assert_near(run(weights, library.encode(program), *inputs()), exact, program)
    assert len(traces) == 1


def assert_near(found, exact, what=""):
    # Float32 rounding: the stream is summed in another order, at most a dozen updates of the size of the stream.
    assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact), what


@pytest.mark.slow
def test_every_rewrite_of_a_mixed_model_in_one_compilation():
    mixed = model(
        replace("blocks[1,3].mixer", "hyena_x"), replace("blocks[2].mlp", "mlp", ratio=3.0),
        replace("blocks[0,2].adaln", "adaln_shared"), replace("blocks[1].norm2", "rms_norm"), lora("blocks[0].mlp"),
    )  # fmt: skip
    lively = jax.tree.map(lambda leaf: leaf + 0.1, mixed.params["lora"])
    mixed = mixed.replace(params={**mixed.params, "lora": lively})
    check(mixed, [mixed.spec.program, SUMMED, *(rewrite.on(mixed.spec).program for rewrite in REWRITES)])


@pytest.mark.slow
def test_learned_projections():
    pairs = model(parallel_pairs(0, 4), depth=5)
    drawn = random_params(pairs.spec, KEY)["merges"]
    pairs = pairs.replace(params={**pairs.params, "merges": drawn})
    check(pairs, [pairs.spec.program, reverse(0, 3).on(pairs.spec).program])


def test_tied_blocks():
    tied = model(tie((1, 2)))
    check(tied, [reverse(0, 4).on(tied.spec).program])


def test_operators_are_chosen_from_two_models():
    """Every choice of the student's operators at some of its sites is that of a model in which only they were grafted."""
    teacher = model()
    edits = replace("blocks[1].mixer", "hyena_x"), replace("blocks[1,3].mlp", "mlp", ratio=3.0)
    student = graft(teacher, compose(*edits), KEY)
    sites = frozenset({(1, "mixer"), (1, "mlp"), (3, "mlp")})
    library = Library((teacher.spec, student.spec), sites)
    weights = library.prepare(teacher.params, student.params)
    run = jax.jit(library.forward)
    each = [teacher, student, graft(teacher, edits[0], KEY), graft(teacher, edits[1], KEY)]
    wanted = jax.jit(lambda models: [forward(one.spec, p, *inputs())[0] for one, p in zip(each, models, strict=True)])
    choices = [{}, dict.fromkeys(sites, 1), {(1, "mixer"): 1}, {(1, "mlp"): 1, (3, "mlp"): 1}]
    for choice, exact in zip(choices, wanted([one.params for one in each]), strict=True):
        assert_near(run(weights, library.encode(choice=choice), *inputs()), exact, choice)


def test_weights_are_held_once():
    """Beside its arguments the program needs no more for 12 blocks than for 3: no copy of the weights, and no tap."""

    def memory(depth):
        whole = model(replace("blocks[1].mixer", "hyena_x"), depth=depth)
        library = Library((whole.spec,))
        run = jax.jit(library.forward)
        weights = jax.eval_shape(library.prepare, whole.params)
        return run.lower(weights, library.encode(), *inputs(1)).compile().memory_analysis().temp_size_in_bytes

    small, large = memory(3), memory(12)
    assert 0 < large < 1.1 * small


def test_refuses():
    library = Library((model().spec,))
    with pytest.raises(BadInput, match=r"expected block ids within 0\.\.3"):
        library.encode((Step((4,)),))
    with pytest.raises(BadInput, match="4 runs of blocks, expected 1 to the capacity of 3"):
        library.encode(capacity=3)
    with pytest.raises(BadInput, match=r"step \(0, 1\): the model has no projection"):
        library.encode((Step((0, 1), "project"),))
    with pytest.raises(BadInput, match="library: models of different blocks or sizes"):
        Library((model().spec, model(depth=3).spec))
