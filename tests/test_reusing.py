"""Drawing with blocks that are left out at some steps: what is asked for is what runs, and little is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.analyze.reuse import reuse_errors, reuse_table
from graftax.diffusion.reuse import Table
from graftax.errors import BadInput
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

SPEC = tiny_spec(hidden_size=24, depth=3, num_heads=2)
STEPS = 6
HOW = {"steps": STEPS, "cfg_scale": 2.0, "cfg_channels": None, "rng": jax.random.key(3)}
LABELS = [1, 2]


@pytest.fixture(scope="module")
def model():
    return Model(SPEC, random_params(SPEC, jax.random.key(0)))


@pytest.fixture(scope="module")
def plain(model):
    return graftax.sample(model, LABELS, **HOW)


def near(found, expected):
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def test_all_computed_is_the_plain_sampler(model, plain):
    everything = str(Table(((True,) * SPEC.depth,) * STEPS))
    for reuse in (everything, "first_block(0)"):
        assert near(graftax.sample(model, LABELS, reuse=reuse, **HOW), plain) < 1e-5


def test_a_table_from_samples_keeps_what_moves(model, plain):
    table = reuse_table(model, LABELS, 0.6, longest=2, **HOW)
    assert 0.4 < table.share <= 0.6
    drawn = near(graftax.sample(model, LABELS, reuse=str(table), **HOW), plain)
    rarely = Table(tuple((call % 3 == 0,) * SPEC.depth for call in range(STEPS)))
    assert 0 < drawn < near(graftax.sample(model, LABELS, reuse=str(rarely), **HOW), plain)


def test_a_threshold_that_nothing_passes_computes_once(model, plain):
    once = Table(tuple(tuple(i == 0 or call == 0 for i in range(SPEC.depth)) for call in range(STEPS)))
    found, expected = (graftax.sample(model, LABELS, reuse=reuse, **HOW) for reuse in ("first_block(1e9)", str(once)))
    assert near(found, expected) < 1e-5
    assert near(found, plain) > 1e-3


def test_errors_are_those_of_the_changes(model):
    """Of the first position: its change at a call is that of the block on the embedded input, which can be had by taps."""
    errors = reuse_errors(model, LABELS, longest=2, **HOW)
    assert errors.shape == (STEPS, 2, SPEC.depth)
    assert np.isnan(errors[0]).all()
    assert np.isnan(errors[1, 1]).all()
    assert np.isfinite(errors[2:]).all()
    assert (errors[2:] > 0).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"reuse": "table(3, 7, 7)"}, "a table of 2 steps, expected 6"),
        ({"reuse": "table(4, f, f, f, f, f, f)"}, "a table of 4 positions, expected the program's 3"),
        ({"reuse": "first_block(0.1)", "sampler": "heun"}, "calls the model once a step"),
        ({"reuse": "first_block(0.1)", "skip": (1,)}, "skipped positions"),
        ({"reuse": "most"}, "expected 'first_block"),
    ],
)
def test_what_does_not_go_together_is_refused(model, settings, named):
    with pytest.raises(BadInput, match=named):
        graftax.sample(model, LABELS, **{**HOW, **settings})


@pytest.mark.slow
def test_the_command_line(run, tmp_path):
    """A table of the shipped model, which samples; and what is refused before anything is drawn."""
    out = tmp_path / "reuse.txt"
    code, said, _ = run("reuse", "demo", "--share", "0.8", "--steps", "3", "--out", out)
    assert (code, out.read_text()[:9]) == (0, "table(10,")
    assert "of the FLOPs left" in said
    picture = tmp_path / "a.png"
    assert run("sample", "demo", "--reuse", out, "--steps", "3", "--labels", "0", "--out", picture)[0] == 0
    for flags, message in ((("--share", "2"), "--share: got 2.0"), (("--longest", "0"), "--longest: got 0")):
        code, _, error = run("reuse", "demo", *flags, "--out", tmp_path / "b.txt")
        assert (code, message in error) == (2, True)
    assert not (tmp_path / "b.txt").exists()
