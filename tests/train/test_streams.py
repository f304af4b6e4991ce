"""Stage 2 of models whose joint attentions are grafted, on a flow's velocity: all of them, or adapters on any selection."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from two_streams import arrays, student

from graftax.surgery import graft, lora, merge_lora
from graftax.testing import assert_trees_close
from graftax.train import DiffusionConfig, LoopConfig, OptimiserConfig, finetune

CONFIG = DiffusionConfig(
    loop=LoopConfig(30, log_every=10, eval_every=0), batch_size=8, class_dropout=0.0, ema_decay=0.5,
    optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=0),
)  # fmt: skip


UNANSWERED = ["01/txt/q_norm/scale"]
"""The queries of a text that gets no answer."""


def learnt(model, config):
    """The model after stage 2, which must have lowered the loss."""
    tuned, history = finetune(model, arrays(), config, show=False)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    return tuned


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("flux", []), pytest.param("flux on the grid", [], marks=pytest.mark.slow),
        pytest.param("sd3", UNANSWERED, marks=pytest.mark.slow),
        pytest.param("sd3 on the grid", UNANSWERED, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_grafted_model_learns_in_all_its_joint_operators(name, idle):
    before = student(name)
    after = learnt(before, CONFIG)
    old, new = (
        flatten_dict({block: model.params["blocks"][block]["attn"] for block in ("00", "01")}, sep="/")
        for model in (before, after)
    )
    assert [path for path in old if not (old[path] != new[path]).any()] == idle


@pytest.mark.slow
def test_adapters_learn_at_grafted_sites_of_both_streams():
    """A Hyena's and a disc's projections, a mixer of both streams, the text's MLPs; filters have none."""
    targets = ["double[*].attn", "single[0].mixer", "double[*].txt/mlp"]
    adapted = graft(student("flux"), lora(targets, rank=4), jax.random.key(2))
    assert len(adapted.spec.adapters) == 2 * 4 + 2 + 2 * 2
    tuned = learnt(adapted, dataclasses.replace(CONFIG, frozen=("(?!lora/).*",)))
    rest = [{name: tree for name, tree in model.params.items() if name != "lora"} for model in (adapted, tuned)]
    assert_trees_close(*rest, rtol=0, atol=0)
    data, t = arrays(2), np.array([0.2, 0.9], np.float32)
    cond = {"text": data["text"], "pooled": data["pooled"]}
    out = tuned(data["image"], t, **cond)
    np.testing.assert_allclose(graft(tuned, merge_lora())(data["image"], t, **cond), out, atol=1e-4)
    assert abs(out - adapted(data["image"], t, **cond)).max() > 1e-2
