"""Blocks that stand for dropped spans: who heals what, and that stage 1 brings the state nearer than bare removal."""

import functools

import jax
import numpy as np
import pytest
from two_streams import SIZES, arrays

from graftax.backbones.flux import flux_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.distill import DistillConfig, calibrate, distill
from graftax.distill.cost import stage1_flops
from graftax.distill.stage1 import table_of
from graftax.distill.steps import healing_steps, regression_units
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import block_cost, flops
from graftax.surgery import compose, drop, graft, replace, skip
from graftax.surgery.check import leaves_by_path
from graftax.testing import random_params, tiny_spec
from graftax.train.loop_config import LoopConfig

KEY = jax.random.key(0)
SPECS = {
    "flux": flux_spec(**SIZES, pooled_width=4, double=4, single=2),
    "sd3": sd3_spec(**SIZES, pooled_width=4, depth=5, positions=4, qk_norm="rms"),
}
DROPS = {"flux": drop(1, 2, heal="before"), "sd3": drop(1, 2, heal="behind")}
HEALERS = {"flux": "00", "sd3": "01"}
"""By their numbers in the student."""

FAST = DistillConfig(steps=60, learning_rate=3e-3, schedule="cosine", plan="auto")


@functools.cache
def teacher(name):
    return Model(SPECS[name], random_params(SPECS[name], jax.random.key(0)))


def reached(model, name, row):
    """Every stream (b, n, d) behind a run of a block, and the output."""
    data = arrays(16)
    t = np.full(16, {"flux": 0.5, "sd3": 500.0}[name], np.float32)
    out, taps = model.apply(data["image"], t, capture="block/out", text=data["text"], pooled=data["pooled"])
    return {"out": out, **{stream: rows[row] for stream, rows in taps["block/out"].items()}}


@pytest.mark.parametrize("name", ["flux", pytest.param("sd3", marks=pytest.mark.slow)])
def test_healing_brings_every_stream_nearer_than_bare_removal(name):
    of, data = teacher(name), arrays(16)
    bare = graft(of, DROPS[name], KEY)
    healed, history = distill(of, bare, data, FAST, LoopConfig(60, eval_every=60), heldout=data, batch_size=8, show=False)
    last = {"flux": (2, 0), "sd3": (3, 1)}[name]
    wanted, start, end = (reached(m, name, last[m is not of]) for m in (of, bare, healed))
    for key, truth in wanted.items():
        first, after = (np.linalg.norm(found[key] - truth) / np.linalg.norm(truth) for found in (start, end))
        assert after < 0.8 * first, (key, first, after)
    assert 0 < history[-1][{"flux": "error/spans[0:3]", "sd3": "error/spans[1:4]"}[name]] < 1
    before, after = (leaves_by_path(model.params) for model in (bare, healed))
    trained = {path for path in before if after[path] is not before[path]}
    assert trained
    assert all(path.startswith(f"blocks/{HEALERS[name]}/") for path in trained)
    streams = {part for path in trained for part in path.split("/")} & {"img", "txt"}
    assert streams == {"img", "txt"}
    assert not healing_steps(healed)  # done: the next stage 1 is about what comes next


def test_who_stands_for_what_and_what_that_costs():
    of = teacher("flux")
    student = graft(of, DROPS["flux"], KEY)
    (unit,) = regression_units(student, None)
    assert (str(unit), unit.step.blocks, unit.span) == ("spans[0:3]", (0,), (0, 1, 2))
    whole = flops(of.spec.replace(program=of.spec.program[:3]), head=False) + 3 * block_cost(student.spec, (0,))[1]
    assert stage1_flops(of.spec, student.spec, [unit]) == whole
    assert set(student.meta.sites) >= {"blocks[0].attn", "blocks[0].img/mlp", "blocks[0].txt/adaln"}
    table = table_of(student)
    assert "blocks[0]/img/mlp/fc1/kernel" in table
    assert not graft(of, drop(1, 2), KEY).meta.sites


def test_several_drops_one_after_the_other_are_told_in_the_teachers_numbers():
    spec = tiny_spec(depth=9)
    of = Model(spec, random_params(spec, KEY))
    student = graft(graft(of, drop(2, 3, 6, heal="before"), KEY), compose(drop(0), drop(1, heal="before")), KEY)
    assert [(unit.step.blocks, unit.span) for unit in healing_steps(student)] == [((0,), (1, 2, 3, 4)), ((1,), (5, 6))]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((drop(0, heal="before"),), r"no block before blocks 0\.\.0 of 6"),
        ((drop(1, heal="before"), replace("blocks[0].mixer", "mha")), "expected one distilled before the other"),
        ((drop(1), drop(2, heal="before")), "student depth: 4, expected the teacher's 6 less 1"),
    ],
)
def test_what_cannot_be_healed_is_refused(edits, message):
    spec = tiny_spec(depth=6)
    of = Model(spec, random_params(spec, KEY))
    data = {"image": np.zeros((4, 8, 8, 4), np.float32), "label": np.zeros(4, np.int32)}
    with pytest.raises(BadInput, match=message):
        distill(of, graft(of, compose(*edits), KEY), data, FAST, show=False)


def test_a_span_that_the_teacher_does_not_run_in_turn_and_a_fit_without_a_last_layer_are_refused():
    spec = tiny_spec(depth=6)
    model = Model(spec, random_params(spec, KEY))
    data = {"image": np.zeros((4, 8, 8, 4), np.float32), "label": np.zeros(4, np.int32)}
    student = graft(model, drop(2, heal="before"), KEY)
    with pytest.raises(BadInput, match=r"spans\[1,2\]: its block runs 0 times"):
        distill(graft(model, skip(1, 3), KEY), student, data, FAST, batch_size=4, show=False)
    with pytest.raises(BadInput, match=r"calibration of spans\[1,2\]: a block that heals has no last layer"):
        calibrate(model, student, data, 1, batch_size=4, show=False)
