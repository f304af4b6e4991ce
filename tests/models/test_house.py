"""What version 0.1 computed with the model that graftax ships, kept in `goldens/house.npz` (see the README beside it)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import graftax
from graftax.diffusion import Process
from graftax.distill import DistillConfig, create_state, make_distill_step
from graftax.distill.groups import group_units
from graftax.distill.steps import regression_units
from graftax.distill.teacher import Teacher
from graftax.models import init
from graftax.models.collect import spread
from graftax.models.library import Library
from graftax.models.plans import segments
from graftax.surgery import compose, parallel, parallel_pairs, replace
from graftax.train import OptimiserConfig, diffusion_loss, make_step, training_tree
from graftax.train.state import create_state as training_state

STRIDE, WHOLE = 41, 2048
TAPS = ("block/in", "mixer/in", "mixer/out", "mlp/in", "mlp/out", "block/out")
PLANS = ("unroll", "auto", "segments", "kind_scan")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8, 8, 4), np.float32)
NOISE = RNG.standard_normal((4, 8, 8, 4), np.float32)
STEPS = RNG.standard_normal((25, 4, 8, 8, 4), np.float32)
T, Y = np.array([0, 250, 500, 999]), np.array([0, 3, 9, 10])
BATCH = {"image": jnp.asarray(NOISE), "label": jnp.array([1, 2, 3, 4])}


@functools.cache
def golden():
    with np.load(Path(__file__).parents[1] / "goldens" / "house.npz") as file:
        return dict(file)


@functools.cache
def models():
    teacher = graftax.load("demo")
    edits = replace("blocks[50%].mixer", "hyena_x", kernel=4), replace("blocks[0,4].mlp", "mlp", ratio=3.0)
    student = graftax.graft(teacher, compose(*edits), KEY)
    return {
        "teacher": teacher, "student": student, "parallel": graftax.graft(student, parallel(3, 7, loops=2, alpha=0.5)),
        "pairs": graftax.graft(teacher, parallel_pairs()),
    }  # fmt: skip


def plans_of(name):
    """The plans that compile to different programs; blocks one after the other are one, however they are cut."""
    cut = {plan: segments(models()[name].spec, plan) for plan in PLANS}
    modes = {plan: tuple(s for s in found if s.mode not in ("unroll", "parallel")) for plan, found in cut.items()}
    return tuple(dict(reversed([(found, plan) for plan, found in modes.items()])).values())


def assert_golden(name, found, tolerance=1e-5):
    """By length of the difference: processors add up in different orders."""
    found, expected = np.asarray(found, np.float64), golden()[name]
    part = found if found.size <= WHOLE else found.ravel()[::STRIDE]
    assert part.shape == expected.shape, name
    assert np.linalg.norm(part - expected) <= tolerance * np.linalg.norm(expected), name


def assert_leaves(prefix, leaves):
    """All leaves of which the golden has some; others are not looked at."""
    flat = flatten_dict(leaves, sep="/")
    names = [name.removeprefix(prefix) for name in golden() if name.startswith(prefix)]
    assert names
    for name in names:
        assert_golden(f"{prefix}{name}", flat[name])


@pytest.mark.parametrize(
    "name", ["student", "parallel", *(pytest.param(name, marks=pytest.mark.slow) for name in ("teacher", "pairs"))]
)
def test_outputs_and_taps_in_every_plan(name):
    model, plans = models()[name], plans_of(name)
    assert "unroll" in plans
    assert len(plans) > 1
    for plan in plans:
        out, taps = model.apply(X, T, Y, capture=TAPS, plan=plan)
        assert_golden(f"{name}/out", out)
        for tap, value in taps.items():
            assert_golden(f"{name}/{tap}", value)


def test_the_program_as_data():
    student, program = models()["student"], models()["parallel"].spec.program
    library = Library((student.spec,))
    run = jax.jit(library.forward)
    assert_golden("data/out", run(library.prepare(student.params), library.encode(program), X, T, {"y": Y}))


@pytest.mark.parametrize("sampler", ["ddim", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_samples(sampler):
    images = graftax.sample(
        models()["student"], np.arange(4), sampler=sampler, steps=25, initial_noise=NOISE, step_noise=STEPS, plan="auto"
    )
    assert_golden(f"sample/{sampler}", images)


def test_one_step_of_stage_1():
    teacher, student = models()["teacher"], models()["student"]
    config = DistillConfig(steps=10, learning_rate=1e-3, plan="auto")
    units = regression_units(student, None)
    source = Teacher(teacher.spec, group_units(student.spec, units), Process(), config)
    step = make_distill_step(teacher.spec, student.spec, units, Process(), config)
    state = create_state(student.spec, student.params, units, config)
    state, metrics = step(state, source.prepare(teacher.params), BATCH, KEY)
    for name, value in metrics.items():
        assert_golden(f"distill/{name}", value)
    assert_leaves("distill/scions/", state.scions)


@pytest.mark.slow
def test_one_step_of_stage_2():
    student, frozen = models()["student"], ("pos_embed",)
    optimiser = OptimiserConfig(learning_rate=1e-3, warmup_steps=0)
    state = training_state(training_tree(student.spec, student.params, frozen), optimiser.build(), frozen)
    state, metrics = make_step(diffusion_loss(student.spec, Process(), plan="auto"), optimiser)(state, BATCH, KEY)
    for name, value in metrics.items():
        assert_golden(f"finetune/{name}", value)
    assert_leaves("finetune/params/", spread(student.spec, state.params))


@pytest.mark.slow
def test_what_is_drawn():
    assert_leaves("graft/", models()["student"].params)
    assert_leaves("init/", jax.jit(init, static_argnums=0)(models()["teacher"].spec, KEY))
