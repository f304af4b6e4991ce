"""Harm of leaving blocks out: its definition, the ranking, and the greedy choice."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.analyze.harm import noised_batches
from graftax.analyze.prune import SkipHarm, prune, rank_blocks
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import Step
from graftax.surgery import drop, graft, lora, merge_lora
from graftax.testing import random_params, tiny_spec

KEY = jax.random.key(0)
HELDOUT = {"image": np.random.default_rng(1).standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}


@functools.cache
def model(sizes=(1.0, 0.1, 0.5, 0.2)):
    """Four blocks of which block i changes its input in proportion to `sizes[i]`."""
    spec = tiny_spec(depth=len(sizes))
    params = random_params(spec, KEY)
    for size, block in zip(sizes, params["blocks"].values(), strict=True):
        gates = jnp.repeat(jnp.array([1, 1, size, 1, 1, size]), spec.width)
        block["adaln"] = jax.tree.map(lambda leaf, gates=gates: leaf * gates, block["adaln"])
    return Model(spec, params)


@functools.cache
def skip_harm():
    return SkipHarm(model(), HELDOUT)


def run(model, inputs):
    x, t, cond = inputs
    return model(x, t, **cond)


def test_harm_is_the_relative_error_of_the_model_without_the_blocks():
    whole = model()
    harm = SkipHarm(whole, HELDOUT, batch_size=4)
    batches = noised_batches(whole.spec, HELDOUT, Process(), 0, 4)
    assert len(batches) == 2
    intact = np.concatenate([run(whole, inputs) for inputs in batches])
    for blocks in ((1,), (3, 0)):
        cut = graft(whole, drop(*blocks), KEY)
        error = np.concatenate([run(cut, inputs) for inputs in batches]) - intact
        assert harm(blocks) == pytest.approx(np.linalg.norm(error) / np.linalg.norm(intact), rel=1e-4)
    assert harm([]) < 1e-6
    assert harm.compilations == 1


def test_small_blocks_rank_first():
    ranked = rank_blocks(skip_harm())
    assert [block for block, _ in ranked] == [1, 3, 2, 0]
    assert all(a <= b for (_, a), (_, b) in itertools.pairwise(ranked))


def test_greedy_pruning_takes_the_least_of_what_is_left():
    harm = skip_harm()
    found = prune(harm, 2)
    first = rank_blocks(harm)[0]
    assert found[0] == first
    assert found[1] == min(((i, harm([first[0], i])) for i in range(4) if i != first[0]), key=lambda pair: pair[1])
    assert prune(harm, 4) == ()
    assert graft(model(), drop(*(block for block, _ in found)), KEY).spec.depth == 2


def test_what_cannot_be_pruned_is_refused():
    whole = model()
    with pytest.raises(BadInput, match=r"prune: depth 0, expected 1\.\.4"):
        prune(skip_harm(), 0)
    with pytest.raises(BadInput, match=r"block 4: expected 0\.\.3"):
        skip_harm()([4])
    parallel = whole.replace(spec=whole.spec.replace(program=(Step((0, 1)), Step((2,)))))
    with pytest.raises(BadInput, match="expected a program of plain blocks"):
        SkipHarm(parallel, HELDOUT)


@pytest.mark.slow
def test_adapters_count():
    spec = graft(model(), lora("blocks[2].mixer"), KEY).spec
    adapted = Model(spec, random_params(spec, KEY))
    merged, bare = graft(adapted, merge_lora(), KEY), Model(model().spec, adapted.params)
    found, same, other = (SkipHarm(one, HELDOUT)([1]) for one in (adapted, merged, bare))
    assert found == pytest.approx(same, rel=1e-4)
    assert found != pytest.approx(other, rel=1e-2)


def test_without_any_block():
    whole = model()
    batches = noised_batches(whole.spec, HELDOUT, Process(), 0, 8)
    intact, bare = (np.concatenate([run(one, inputs) for inputs in batches]) for one in (whole, model((0, 0, 0, 0))))
    expected = np.linalg.norm(bare - intact) / np.linalg.norm(intact)
    assert skip_harm()(range(4)) == pytest.approx(expected, rel=1e-4)
