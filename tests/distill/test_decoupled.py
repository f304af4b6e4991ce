"""Modulations of a decoder against lstsq on the tokens that they are fitted to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import Stream, batch, teacher

from graftax.diffusion import Process
from graftax.distill import fit_decoupled
from graftax.errors import BadInput
from graftax.models.backbone import find
from graftax.models.stages import stages
from graftax.surgery import decouple, graft
from graftax.surgery.replace import modulation_at
from graftax.surgery.select import Site
from graftax.testing import assert_same_leaves

OF = teacher(depth=2, hidden_size=16, num_heads=2)
RNG = jax.random.key(4)
SITE = Site(1, "adaln")


def seen(model, index):
    """silu of what conditions the decoder's tokens, and what the teacher's blocks were conditioned on."""
    images, process, key = batch(index), Process(), jax.random.fold_in(RNG, index)
    t = process.draw(jax.random.fold_in(key, 0), 8)
    x = process.q_sample(images["image"], t, jax.random.normal(jax.random.fold_in(key, 1), images["image"].shape))
    two, cond = stages(model.spec), {"y": jnp.asarray(images["label"])}
    made = two.encode(two.prepare(model.params, "unroll")[0], x, process.model_times(t), cond)
    vec = find(OF.spec).vec(OF.spec, OF.params, process.model_times(t), cond["y"])
    u, v = (np.float64(jax.nn.silu(a)) for a in (made, vec))
    return u.reshape(-1, 16), np.repeat(v, made.shape[1], axis=0)


@pytest.mark.slow
def test_they_are_the_least_squares_ones():
    student = graft(OF, decouple(1))
    found = fit_decoupled(OF, student, Stream(), 3, rng=RNG, show=False)
    assert_same_leaves(student.params, found.params, ["blocks/01/adaln", "final/adaln"])
    u, v = map(np.concatenate, zip(*(seen(student, i) for i in range(3)), strict=True))
    rows = np.hstack([u, np.ones((len(u), 1))])
    final = tuple(np.float64(OF.params["final"]["adaln"][name]) for name in ("kernel", "bias"))
    mine = found.params["final"]["adaln"]
    pairs = [(modulation_at(OF.spec, OF.params, SITE), modulation_at(found.spec, found.params, SITE)),
             (final, (np.float64(mine["kernel"]), np.float64(mine["bias"])))]  # fmt: skip
    for (kernel, bias), fitted in pairs:
        wanted = v @ kernel + bias
        best = np.linalg.norm(rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0] - wanted)
        now, before = (np.linalg.norm(u @ k + b - wanted) for k, b in (fitted, (kernel, bias)))
        np.testing.assert_allclose(now, best, rtol=1e-3)
        assert now < 0.8 * before


def test_what_has_one_stage_is_refused():
    with pytest.raises(BadInput, match="two stages: a dit of 2 steps"):
        fit_decoupled(OF, OF, Stream(), 1, show=False)
    longer = graft(teacher(depth=3, hidden_size=16, num_heads=2), decouple(1))
    with pytest.raises(BadInput, match=r"a teacher of 2 blocks, expected the DiT that decouple\(\) was applied to"):
        fit_decoupled(OF, longer, Stream(), 1, show=False)
