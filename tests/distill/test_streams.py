"""Stage 1 where operators have two streams: both are learnt, and what is linear in one of them is solved."""

import jax
import numpy as np
import pytest
from two_streams import arrays, student, teacher

from graftax.blocks import build
from graftax.data.feed import as_batches
from graftax.diffusion import Flow
from graftax.distill import DistillConfig, calibrate, distill
from graftax.distill.groups import group_sites
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.surgery import graft, replace
from graftax.surgery.select import select
from graftax.testing import assert_same_leaves
from graftax.train.loop_config import LoopConfig

CONFIG = DistillConfig(steps=40, learning_rate=3e-3, schedule="constant")
DATA = arrays()


def answers(model):
    """What the attention of the first block gives each stream: teacher's and student's have the same input."""
    cond = {"text": DATA["text"], "pooled": DATA["pooled"]}
    _, taps = model.apply(DATA["image"], np.full(8, 0.5, np.float32), capture="attn/out", **cond)
    return {name: np.asarray(stream[0]) for name, stream in taps["attn/out"].items()}


@pytest.mark.parametrize("name", ["flux", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "flux on the grid", "sd3 on the grid")
)])  # fmt: skip
def test_both_streams_are_learnt(name):
    before, loop = student(name), LoopConfig(40, log_every=40, eval_every=20)
    after, history = distill(teacher(name), before, DATA, CONFIG, loop, heldout=DATA, batch_size=8, show=False)
    assert_same_leaves(before.params, after.params, ["blocks/00/attn", "blocks/01/attn"])
    wanted, start, end = (answers(model) for model in (teacher(name), before, after))
    for stream, truth in wanted.items():
        first, last = (np.linalg.norm(found[stream] - truth) / np.linalg.norm(truth) for found in (start, end))
        assert last < 0.7 * first, stream
    middle, end = (line for line in history if line["split"] == "eval")
    for block in (0, 1):
        assert end[f"error/blocks[{block}].attn"] < middle[f"error/blocks[{block}].attn"] < 1


@pytest.mark.parametrize("rank", [0, 3])
def test_an_affine_map_for_the_texts_mlp_is_solved(rank):
    scion = graft(teacher("flux"), replace("double[*].txt/mlp", "affine_mlp", rank=rank), jax.random.key(2))
    key, steps = jax.random.key(3), 4
    fitted = calibrate(teacher("flux"), scion, as_batches(DATA, 8, 0), steps, batch_size=8, rng=key, show=False)
    sites = select("double[*].txt/mlp", scion.spec)
    assert_same_leaves(scion.params, fitted.params, [site.path(scion.spec) for site in sites])
    operator = build(scion.spec, "double", "txt/mlp", scion.spec.blocks[0]["txt/mlp"])
    for number, (x, y) in enumerate(pairs(sites, key, steps)):
        found = call(operator, fitted.params["blocks"][f"{number:02d}"]["txt"]["mlp"], x)
        best = best_map(x, y, rank or 24)
        assert np.linalg.norm(found - best) < 1e-3 * np.linalg.norm(best)
        assert np.linalg.norm(best - y) < 0.6 * np.linalg.norm(y)  # much of such an MLP is linear


def best_map(x, y, rank):
    """What the affine map of this rank gives that is nearest to y: first components of the full one's (Izenman 1975)."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    best = rows @ np.linalg.lstsq(rows, y, rcond=None)[0]
    u, s, v = np.linalg.svd(best - best.mean(0), full_matrices=False)
    return best.mean(0) + (u[:, :rank] * s[:rank]) @ v[:rank]


def pairs(sites, key, steps):
    """Inputs and outputs (rows, d) of the teacher's operators at sites that calibration sees, float64."""
    spec = teacher("flux").spec
    ((name, group),) = group_sites(spec, sites).items()
    source = Teacher(spec, {name: group}, Flow(), DistillConfig())
    prepared, sample = source.prepare(teacher("flux").params), jax.jit(source.sample_pairs)
    batches, seen = as_batches(DATA, 8, 0), []
    for i in range(steps):
        batch = next(batches)
        found, _ = sample(prepared, batch["image"], source.condition(batch), jax.random.fold_in(key, i))
        seen.append(jax.tree.map(np.float64, found[name]))  # (sites, b, m, d) each
    both = (np.concatenate(side, axis=1) for side in zip(*seen, strict=True))
    return list(zip(*(side.reshape(len(side), -1, 24) for side in both), strict=True))


def test_the_last_layer_of_a_joint_operator_is_no_single_one():
    with pytest.raises(BadInput, match=r"calibration of .*\.attn: it has no last layer and no scales, expected 0"):
        calibrate(teacher("flux"), student("flux"), DATA, 1, batch_size=8, show=False)


def test_operators_of_another_role_are_refused_with_those_that_fit():
    kinds = ("clear", "gated_delta", "gqa", "hyena_2d", "hyena_x", "linear", "mha", "natten", "sla", "swa_2d")
    fits = ", ".join(f"joint_{kind}" for kind in kinds)
    for selector, kind, message in (
        ("double[0].attn", "linear", f"'linear' has the role mixer, expected one with the role joint: {fits}"),
        (
            "single[0].mixer",
            "joint_linear",
            "'joint_linear' has the role joint, .* the role mixer: affine, clear, ",
        ),
    ):
        with pytest.raises(BadInput, match=message) as refused:
            graft(teacher("flux"), replace(selector, kind), jax.random.key(0))
        assert "\n" not in str(refused.value)
