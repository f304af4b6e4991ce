"""Plans for tiny models: what fits, goals that are out of reach, the front with its configs, on noise and by a roofline."""

import dataclasses
import json

import jax
import pytest

from graftax import config
from graftax.analyze.plan import Goal
from graftax.backbones.flux.variants import flux_spec
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import count_params, flops
from graftax.pages import plan_page
from graftax.spec import op
from graftax.study import plan as plans
from graftax.study import teaching
from graftax.study.config import experiment_of
from graftax.study.plan_check import rank_correlation
from graftax.surgery import compose, graft, parse, replace
from graftax.testing import random_params, tiny_spec, tiny_text_spec
from graftax.train.chips import CHIPS

FLUX = flux_spec(
    input_size=8, hidden_size=32, num_heads=2, double=1, single=1, text_width=6, text_tokens=3, pooled_width=4
)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    spec = tiny_spec(depth=2, hidden_size=32)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    noise = teaching.from_noise(spec, images=4)
    return model, plans.plan(model, Goal("flops", 0.9), noise, operators=("affine", "mlp(ratio=2)"), chip=CHIPS["v5e"])


def test_candidates():
    spec = tiny_spec()
    fitting = plans.candidates(spec)
    assert {"swa", "linear", "hyena_x", "affine", "affine_mlp"} <= {one.kind for one in fitting}
    assert op("mlp", ratio=2.0) in fitting
    assert not {one.kind for one in fitting} & {"mha", "adaln", "layer_norm", "cross_mha", "joint_mha"}
    assert all(len(sites) == 4 for sites in fitting.values())
    assert [str(one) for one in plans.candidates(spec, ["swa(window=3)"])] == ["swa(window=3)"]
    assert "swa" in {one.kind for one in plans.candidates(tiny_text_spec())}
    joint = {str(one) for one in plans.candidates(FLUX)}
    norms = dict(FLUX.blocks[0]["attn"].options)["qk_norm"]
    assert any(one.startswith("joint_linear(") and f"qk_norm={norms}" in one for one in joint)
    assert not any(one.startswith("joint_mha(") for one in joint)  # that is what is there
    with pytest.raises(BadInput, match="joint_mha fits nowhere"):
        plans.candidates(spec, ["joint_mha"])


def test_a_front(found):
    model, plan = found
    assert plan.where == "v5e"
    assert plan.measured == ()
    assert {str(line.operator) for line in plan.lines} == {"affine(rank=0)", "mlp(ratio=2.0)"}
    assert plan.front
    assert set(plan.front) <= set(plan.considered)
    for one in plan.considered:
        after = compose(*map(parse, one.edits)).on(model.spec)
        assert one.flops == pytest.approx(flops(after) / flops(model.spec))
        assert one.params == pytest.approx(count_params(after) / count_params(model.spec))
        assert one.flops <= 0.9
        assert one.harm > 0
    harms = [one.harm for one in plan.front]
    assert harms == sorted(harms)


def test_what_cannot_be_reached_is_said(found):
    model, _ = found
    with pytest.raises(BadInput, match=r"flops: got 0\.01, but no operator gives more than 0\.\d+ at all sites"):
        plans.plan(model, Goal("flops", 0.01), operators=("affine",), chip=CHIPS["v5e"])


def test_page_and_configs(found, tmp_path):
    model, plan = found
    folder = tmp_path / "plan"
    page = plan_page.write(plan, "demo", teaching.recipe_of("demo", model.spec), folder)
    assert "A plan for demo" in page.read_text()
    record = json.loads((folder / plan_page.FILE).read_text())
    assert record["goal"] == {"flops": 0.9}
    assert len(record["front"]) == len(plan.front)
    for i, one in enumerate(plan.front, 1):
        recipe = experiment_of(config.read(folder / f"plan_{i}.py"), "recipe")
        assert recipe.graft.edits == one.edits
        assert recipe == dataclasses.replace(
            teaching.recipe_of("demo", model.spec), graft=recipe.graft, workdir=str(folder / f"plan_{i}")
        )
    assert plan.front[0].edits[0] in plan_page.text(plan)
    slow = dataclasses.replace(plan, goal=Goal("faster", 1.5), measured=(1.4,) * len(plan.front))
    assert "Measured below the 1.5 x asked for: plan 1" in plan_page.text(slow)


def test_rank_correlation():
    assert rank_correlation((1, 2, 3), (10, 20, 50)) == pytest.approx(1)
    assert rank_correlation((1, 2, 3), (3, 2, 1)) == pytest.approx(-1)
    assert rank_correlation((1, 1, 2), (1, 1, 2)) == pytest.approx(1)
    assert rank_correlation((1, 2, 3, 4), (1, 2, 2, 1)) == 0
    assert rank_correlation((1, 2), (5, 5)) == 0


def test_on_noise_scales_and_last_layers_are_fitted_to_the_same_batches():
    """Of an operator that has both, so that the batches are looked at twice."""
    spec = tiny_spec(depth=1, hidden_size=16, num_heads=2)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    student = graft(model, replace("blocks[0].mixer", "mha_normed", qk_norm="rms", init="transplant"), jax.random.key(1))
    teach = teaching.from_noise(spec, images=8).teach
    first, second = (teach(model, student, "mha_normed").params["blocks"]["00"]["mixer"] for _ in range(2))
    for part in ("q_norm", "proj"):
        leaves = zip(*map(jax.tree.leaves, (first[part], student.params["blocks"]["00"]["mixer"][part])), strict=True)
        assert any((a != b).any() for a, b in leaves)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))
