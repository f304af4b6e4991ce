"""The objective ablation: one start and one stream for all objectives, held-out numbers by their definitions."""

import jax
import numpy as np
import pytest
from tiny_graft import Stream, batch, teacher

from graftax.analyze.ablation import objective_ablation, paper_blocks
from graftax.diffusion import Process
from graftax.distill import DistillConfig, huber, l1, l2
from graftax.errors import BadInput
from graftax.testing import assert_same_leaves

HELDOUT = batch(9, 6)
CONFIG = DistillConfig(steps=3, learning_rate=1e-3, huber_delta=0.5)


def test_layers_of_the_paper():
    assert paper_blocks(28) == (0, 7, 16, 26, 27)
    assert paper_blocks(10) == (0, 2, 5, 9)
    assert paper_blocks(1) == (0,)


@pytest.mark.slow
def test_losses_are_those_of_the_plugged_in_operators():
    original = teacher(depth=4)
    found = objective_ablation(original, Stream, HELDOUT, CONFIG, slot="mlp", blocks=(1, 3), seed=4, show=False)
    assert [one.objective for one in found] == ["l1", "l2", "huber"]
    rng = np.random.default_rng(0)
    t = rng.permutation(((np.arange(6) + 0.5) / 6 * 1000).astype(np.int32))
    x_t = Process().q_sample(HELDOUT["image"], t, rng.standard_normal(HELDOUT["image"].shape, np.float32))
    _, taps = original.apply(x_t, t, HELDOUT["label"], capture=("mlp/in", "mlp/out"))
    for one in found:
        assert one.student.meta.sites == ("blocks[1].mlp", "blocks[3].mlp")
        assert_same_leaves(original.params, one.student.params, except_paths=("blocks/01/mlp", "blocks/03/mlp"))
        losses = {"l1": [], "l2": [], "huber": []}
        for i in (1, 3):
            p = one.student.params["blocks"][one.student.spec.block_key(i)]["mlp"]
            hidden = jax.nn.gelu(taps["mlp/in"][i] @ p["fc1"]["kernel"] + p["fc1"]["bias"], approximate=True)
            out, target = hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"], taps["mlp/out"][i]
            for name, loss in (("l1", l1), ("l2", l2), ("huber", lambda a, b: huber(a, b, 0.5))):
                losses[name].append(float(loss(out, target)))
            error = np.linalg.norm(out - target) / np.linalg.norm(target)
            assert one.errors[f"blocks[{i}].mlp"] == pytest.approx(error, rel=1e-4)
        assert one.losses == pytest.approx({name: np.mean(values) for name, values in losses.items()}, rel=1e-4)
    weights = {one.student.params["blocks"]["01"]["mlp"]["fc1"]["bias"].tobytes() for one in found}
    assert len(weights) == 3  # the objectives differ, and nothing else
    again = objective_ablation(
        original, Stream, HELDOUT, CONFIG, slot="mlp", blocks=(1, 3), objectives=("l2",), seed=4, show=False
    )
    assert again[0].losses == found[1].losses


def test_refuses():
    original = teacher(depth=4)
    for options, reason in (
        ({"slot": "norm1"}, r"slot 'norm1', .* expected one of \('mixer', 'mlp'\)"),
        ({"objectives": ("l3",)}, r"objectives \('l3',\)"), ({"blocks": (4,)}, "block 4"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=reason):
            objective_ablation(original, Stream, HELDOUT, CONFIG, **options)
