"""Merged steps in stage 1: the pairs of the teacher, the fit of projections, training, and who trains what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import FAST, Stream, batch, teacher

from graftax.diffusion import Process
from graftax.distill import DistillConfig, calibrate, distill
from graftax.distill.groups import group_units, install_scions, stack_scions
from graftax.distill.heldout import heldout_errors
from graftax.distill.steps import merged_steps, regression_units
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models.stack import apply_stack
from graftax.spec import Step
from graftax.surgery import compose, graft, parallel_pairs, replace
from graftax.testing import assert_same_leaves
from graftax.train.loop_config import LoopConfig

KEY = jax.random.key(0)
CONFIG = DistillConfig()


@functools.cache
def gentle(depth=2):
    """A teacher whose blocks change their input by little, as trained ones do, so that order matters by little."""
    of = teacher(depth=depth)
    blocks = {key: {**p, "adaln": jax.tree.map(lambda a: 0.2 * a, p["adaln"])} for key, p in of.params["blocks"].items()}
    return of.replace(params={**of.params, "blocks": blocks})


def paired(of, *edits):
    return graft(of, compose(*edits, parallel_pairs()), KEY)


@functools.cache
def measure(of, student):
    """Groups of all that stage 1 would train of specs, and their held-out errors, compiled once."""
    units = merged_steps(student)
    return group_units(student, units), heldout_errors(of, student, units, Process(), batch(7, 16), CONFIG)


def error(of, student):
    """Held-out error, mean over merged steps."""
    groups, evaluate = measure(of.spec, student.spec)
    return evaluate(stack_scions(student.params, groups), Teacher(of.spec, groups, Process(), CONFIG).prepare(of.params))


@pytest.mark.slow
def test_inputs_and_targets_are_those_of_the_blocks_in_turn():
    original = teacher()
    student, data = paired(original), batch(0)
    groups = group_units(student.spec, merged_steps(student.spec))
    assert [list(map(str, group.sites)) for group in groups.values()] == [["merges[0,1]", "merges[2,3]"]]
    source = Teacher(original.spec, groups, Process(), CONFIG)
    t, noise = jnp.arange(8) * 100, jax.random.normal(KEY, data["image"].shape)
    cond = source.condition(data)
    found, context = jax.jit(source.pairs)(source.prepare(original.params), data["image"], cond, t, noise)
    ((x, target),) = found.values()
    x_t = Process().q_sample(data["image"], t, noise)
    _, taps = original.apply(x_t, t, data["label"], capture=("block/in", "block/out"))
    np.testing.assert_allclose(x, taps["block/in"][::2], atol=1e-5)
    np.testing.assert_allclose(target, taps["block/out"][1::2], atol=1e-5)
    alone = original.spec.replace(program=(Step((2,)), Step((3,))))
    run = jax.jit(lambda blocks, x: apply_stack(alone, blocks, {"img": x}, context))
    again, _ = run(original.params["blocks"], x[1])
    np.testing.assert_allclose(again["img"], target[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_weights_of_steps_are_stacked_and_installed():
    student = paired(teacher())
    groups = group_units(student.spec, merged_steps(student.spec))
    stacks = stack_scions(student.params, groups)
    again = install_scions(student.params, groups, jax.tree.map(lambda a: np.asarray(a) + 1, stacks))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b - 1).max(), again, student.params)
    assert max(jax.tree.leaves((moved["blocks"], moved["merges"]))) < 1e-5
    assert_same_leaves(student.params, again, ["blocks", "merges"])


@pytest.mark.slow
def test_a_fitted_projection_is_the_least_squares_one():
    """On its own calibration data it beats the mean, and no other linear map of the block outputs beats it."""
    original = gentle()
    student = paired(original)
    fitted = calibrate(original, student, Stream(size=32), 8, CONFIG, show=False)
    assert_same_leaves(student.params, fitted.params, ["merges"])
    before, after = error(original, student), error(original, fitted)
    assert after["error"] < 0.5 * before["error"]
    for spoil in (1e-2, -1e-2):
        merges = jax.tree.map(lambda a, s=spoil: a + s * jax.random.normal(KEY, a.shape), fitted.params["merges"])
        other = fitted.replace(params={**fitted.params, "merges": merges})
        assert after["error"] < error(original, other)["error"]
    summed = calibrate(
        original, student, Stream(size=32), 8, dataclasses.replace(CONFIG, merge_target="residual_sum"), show=False
    )
    assert after["error"] < error(original, summed)["error"] < before["error"]


def test_training_teaches_blocks_and_projections_and_nothing_else():
    original = gentle()
    student = paired(original)
    config = dataclasses.replace(FAST, steps=40, learning_rate=1e-3)
    trained, history = distill(
        original, student, Stream(), config, LoopConfig(40, log_every=10, eval_every=20), heldout=batch(7, 16), show=False
    )
    evals = [line for line in history if line["split"] == "eval"]
    assert evals[-1]["error"] < 0.7 * error(original, student)["error"]
    assert evals[-1]["error/merges[0,1]"] == pytest.approx(error(original, trained)["error/merges[0,1]"], rel=1e-3)
    assert_same_leaves(student.params, trained.params, ["blocks", "merges"])
    assert all(a is not b for a, b in zip(*(jax.tree.leaves(m.params["blocks"]) for m in (student, trained)), strict=True))


def test_scions_inside_merged_steps_belong_to_them():
    original = teacher(depth=6)
    student = graft(original, compose(replace("blocks[1,5].mixer", "hyena_x"), parallel_pairs(0, 4)), KEY)
    assert [str(unit) for unit in regression_units(student, None)] == ["blocks[5].mixer", "merges[0,1]", "merges[2,3]"]
    assert [str(unit) for unit in regression_units(student, "blocks[1].mixer")] == ["blocks[1].mixer"]
    assert len(group_units(student.spec, regression_units(student, None))) == 3


@pytest.mark.parametrize(("name", "value"), [("step_loss", "l3"), ("merge_target", "mean")])
def test_bad_settings_are_named(name, value):
    with pytest.raises(BadInput, match=f"DistillConfig.{name}: got '{value}'"):
        DistillConfig(**{name: value})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ((Step((0, 1), "project"), Step((1, 2), "project")), "block 1 runs in two merged steps"),
        ((Step((0, 1), "project", loops=2),), "looped or scaled"),
        ((Step((1, 0), "project"),), r"merges\[1,0\]: the teacher does not run blocks \(1, 0\) one after the other"),
        ((Step((0, 2), "project"),), r"merges\[0,2\]: the teacher does not run"),
    ],
)
def test_steps_that_cannot_be_taught_are_refused(program, message):
    spec = teacher().spec
    with pytest.raises(BadInput, match=message):
        Teacher(spec, group_units(spec, merged_steps(spec.replace(program=program))), Process(), CONFIG)
