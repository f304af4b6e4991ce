"""A kept encoder: the authors' trajectories, the steps at which it runs, and what is refused."""

import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.diffusion import Sampling, Steps
from graftax.diffusion.sharing import chosen_steps, every, similarities
from graftax.errors import BadInput
from graftax.models import Model
from graftax.testing import tiny_spec

TINY = Model(tiny_spec(), {})
GOLDENS = Path(__file__).parents[1] / "goldens" / "ddt"


@functools.cache
def model():
    return graftax.load(GOLDENS / "ddt.ckpt", encoder_blocks=2, input_size=8)


@functools.cache
def golden():
    data = np.load(GOLDENS / "sampling.npz")
    return {name: data[name] for name in data.files}


def slow(*row):
    return pytest.param(*row, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("euler.shift1.0.refresh3.w2.lo0.3", {"refresh": every(3, 9)}),
        ("sharing.recompute_0_1_2_5", {"refresh": (0, 1, 2, 5)}),
        slow("euler.shift1.0.refresh1.w2.lo0.3", {}), slow("euler.shift1.0.refresh1.w2.lo0.3", {"refresh": range(9)}),
        slow("euler.shift1.0.refresh2.w2.lo0.3", {"refresh": every(2, 9)}),
        slow("euler.shift2.0.refresh1.w2.lo0.3", {"shift": 2.0}),
        slow("euler.shift2.0.refresh2.w2.lo0.3", {"shift": 2.0, "refresh": every(2, 9)}),
        slow("euler.shift2.0.refresh3.w2.lo0.3", {"shift": 2.0, "refresh": every(3, 9)}),
        slow("sharing.recompute_0_3_4", {"refresh": (0, 3, 4)}),
        slow("euler.shift1.0.refresh1.w1", {"cfg_scale": 1.0, "refresh": range(9)}),
        slow("euler.shift1.0.refresh1.w2.all", {"interval": None, "refresh": range(9)}),
        slow("euler.shift1.0.refresh1.w2.c3", {"cfg_channels": 3, "refresh": range(9)}),
    ],
)  # fmt: skip
def test_trajectories_of_the_authors(key, how):
    """As the family draws, but for what is said."""
    data = golden()
    found = graftax.sample(model(), data["y"], initial_noise=data["z"].transpose(0, 2, 3, 1), steps=9, **how)
    expected = data[key].transpose(0, 2, 3, 1)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_best_steps():
    found = similarities(golden()["dp_states"])
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)
    assert chosen_steps(found, 3) == tuple(golden()["dp_recompute"])
    assert chosen_steps(found, 5) == tuple(golden()["dp_recompute_5"])
    lost = 1 - np.random.default_rng(0).random((7, 7))

    def total(chosen):
        return sum(lost[max(one for one in chosen if one <= step), step] for step in range(7))

    for count in range(1, 8):
        every_choice = [(0, *rest) for rest in itertools.combinations(range(1, 7), count - 1)]
        assert chosen_steps(1 - lost, count) == min(every_choice, key=total)


@pytest.mark.slow
def test_steps_chosen_for_a_model():
    chosen = graftax.refresh_steps(model(), [0, 1], 4, steps=9)
    assert len(chosen) == 4
    assert chosen[0] == 0
    assert len(graftax.sample(model(), [0, 1], steps=9, refresh=chosen)) == 2


def test_the_encoder_runs_only_where_it_is_asked_to():
    seen = []

    def encode(x, t, cond):
        jax.debug.callback(lambda t: seen.append(round(float(t[0]), 6)), t)
        return jax.numpy.zeros((len(x), 4, 2)) + t[:, None, None]

    how = Sampling(sampler="euler", steps=5, refresh=(3, 0), cfg_scale=1)
    steps = Steps(lambda x, t, kept: kept[:, 0, 0, None, None, None] + 0 * x, how, encode=encode)
    x, y = np.ones((2, 4, 4, 1), np.float32), np.zeros(2)
    out = jax.block_until_ready(steps.scan(x, y, None, None))
    assert seen == [1.0, 0.4]
    np.testing.assert_allclose(out, 1 - 0.2 * (3 * 1 + 2 * 0.4), atol=1e-6)
    np.testing.assert_allclose(steps.kept(x, y, None, None)[:, 0, 0, 0], [1, 1, 1, 0.4, 0.4], rtol=1e-6)
    assert str(how) == "Euler, 5 steps, no guidance, encoder in 2 steps (0, 3)"
    assert "encoder in 84 steps (0, 3, .. 249)" in str(Sampling(sampler="euler", steps=250, refresh=every(3, 250)))


def test_what_is_refused():
    for make, message in (
        (lambda: every(0, 9), "refresh: got every 0 steps, expected 1 or more"),
        (lambda: chosen_steps(np.eye(3), 4), r"refresh: got 4 of 3 steps, expected 1..3"),
        (lambda: Sampling(sampler="euler", steps=2, refresh=(1,)), r"refresh: got \(1,\), expected steps of 0..1, 0 among"),
        (lambda: Sampling(sampler="heun", steps=2, refresh=(0,)), "refresh: expected the sampler 'euler' or"),
        (lambda: Sampling(sampler="euler", refresh="all"), "refresh: got 'all', expected steps"),
        (lambda: graftax.sample(TINY, [0], sampler="euler", refresh=(0,)), "two stages: a dit of 4 steps, expected an enc"),
    ):
        with pytest.raises(BadInput, match=message):
            make()
