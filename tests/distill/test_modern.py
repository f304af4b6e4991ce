"""Blocks as grafts through both stages: what scions read that the teacher has not, and where norms learn."""

import jax
import numpy as np
import pytest
from tiny_graft import FAST, Stream, batch, teacher

import graftax
from graftax.distill import calibrate
from graftax.distill.sites import learnt_sites
from graftax.distill.stage1 import distill_job
from graftax.surgery import compose, graft, parse
from graftax.train import DiffusionConfig, LoopConfig, finetune

OF = teacher(depth=1)
RNG = jax.random.key(0)
X, T, Y = batch(3)["image"][:2], np.array([5, 400]), np.array([0, 4])
EDITS = (
    "rotary(blocks[*].mixer)", "replace(blocks[*].norm, rms_norm(affine=true))",
    "replace(blocks[*].mlp, swiglu(ratio=4.0, bias=true), init=transplant)",
)  # fmt: skip


@pytest.mark.slow
def test_stage_1_teaches_what_reads_positions_and_least_squares_norms_too():
    """Held-out errors of mixers: least squares make them smaller; what reads positions starts without one."""
    student = graft(OF, compose(*map(parse, EDITS)), RNG)
    assert list(map(str, learnt_sites(student))) == ["blocks[0].mixer", "blocks[0].mlp"]
    fitted = calibrate(OF, student, Stream(), 4, FAST, rng=RNG, show=False)
    before, after = errors(student), errors(fitted)
    assert before["mixer"] == 0
    assert after["mixer"] < 1e-3  # the fit is of what is missing, nothing
    assert after["mlp"] < 0.8 * before["mlp"] < 0.02
    norms = graft(OF, parse(EDITS[1]), RNG)
    fitted = calibrate(OF, norms, Stream(), 4, FAST, rng=RNG, show=False)
    one, other, expected = (np.asarray(model(X, T, Y)) for model in (norms, fitted, OF))
    assert np.abs(other - expected).mean() < 0.8 * np.abs(one - expected).mean()


def errors(student):
    """Relative held-out error by slot."""
    job = distill_job(OF, student, FAST, heldout=batch(9))
    found = job.evaluate(job.init())
    return {slot: float(found[f"error/blocks[0].{slot}"]) for slot in ("mixer", "mlp")}


@pytest.mark.slow
@pytest.mark.parametrize("text", [*EDITS, "class_tokens()", "place_norms(blocks[*].norm, sandwich)", "patch(4)"])
def test_stage_2_trains_what_comes_in_and_folders_keep_it(text, tmp_path):
    student = graft(OF, parse(text), RNG)
    trained, _ = finetune(student, Stream(), DiffusionConfig(loop=LoopConfig(3)), show=False)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), student.params, trained.params)
    assert any(jax.tree.leaves(moved["blocks"]))
    graftax.save(trained, tmp_path / "model")
    found = graftax.load(tmp_path / "model")
    assert found.spec == trained.spec
    np.testing.assert_array_equal(np.asarray(found(X, T, Y)), np.asarray(trained(X, T, Y)))
