from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import FAST, batch, mixed, student, teacher

from graftax.diffusion import Process
from graftax.distill import DistillConfig, DistillState, create_state, make_distill_step
from graftax.distill.groups import group_sites, install_scions
from graftax.distill.teacher import Teacher
from graftax.models import Model
from graftax.surgery import replace
from graftax.surgery.select import select
from graftax.testing import assert_trees_close

PROCESS = Process()


def run(
    of: Model, grafted: Model, steps: int, config: DistillConfig = FAST, sites: Any = None, **options: Any
) -> tuple[DistillState, list[dict[str, float]], Any]:
    """The state after `steps` updates, the metrics of each, and the whole parameter tree with the scions in it."""
    sites = select(sites or grafted.meta.sites, grafted.spec)
    groups = group_sites(grafted.spec, sites)
    prepared = Teacher(of.spec, groups, PROCESS, config).prepare(of.params)
    step = make_distill_step(of.spec, grafted.spec, sites, PROCESS, config, **options)
    state, seen = create_state(grafted.spec, grafted.params, sites, config), []
    for i in range(steps):
        state, metrics = step(state, prepared, batch(i), jax.random.fold_in(jax.random.key(0), i))
        seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen, install_scions(grafted.params, groups, state.scions)


def test_joint_training_equals_training_each_site_alone() -> None:
    original = teacher()
    grafted = mixed(original)
    # A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps. The clip is
    # small enough to act, so that a norm taken over several sites would show.
    config = DistillConfig(steps=8, learning_rate=0.3, eps=0.1, grad_clip=0.05)
    _, seen, joint = run(original, grafted, 8, config)
    alone, losses, norms = grafted.params, [], []
    for name in grafted.meta.sites:
        _, metrics, trained = run(original, grafted, 8, config, sites=[name])
        site = select(name, grafted.spec)[0]
        key = f"{site.block:02d}"
        alone = {
            **alone,
            "blocks": {**alone["blocks"], key: {**alone["blocks"][key], site.slot: trained["blocks"][key][site.slot]}},
        }
        losses.append([m["loss"] for m in metrics])
        norms.append([m["grad_norm"] for m in metrics])
    assert_trees_close(joint, alone, rtol=1e-5, atol=1e-5)
    assert np.min(norms) > config.grad_clip
    np.testing.assert_allclose([m["loss"] for m in seen], np.mean(losses, 0), rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in seen], np.max(norms, 0), rtol=1e-4)
    moved = (
        joint["blocks"]["03"]["mixer"]["in_proj"]["kernel"] - grafted.params["blocks"]["03"]["mixer"]["in_proj"]["kernel"]
    )
    assert float(jnp.abs(moved).max()) > 1e-3


def test_vmap_and_map_agree() -> None:
    original = teacher()
    config = DistillConfig(steps=5, learning_rate=0.1, eps=0.1)
    results = [run(original, mixed(original), 5, config, method=method) for method in ("vmap", "map")]
    assert_trees_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)


def test_a_scion_that_already_is_the_teachers_operator_has_no_loss_and_stays() -> None:
    original = teacher()
    sites = ["blocks[*].mixer", "blocks[1].mlp"]
    assert run(original, original, 1, sites=sites)[1][0]["loss"] < 1e-6
    # The gradient of l1 is a sign however small the error, so only l2 lets a perfect scion rest.
    config = DistillConfig(learning_rate=1e-3, eps=1.0, mixer_loss="l2")
    _, seen, after = run(original, original, 3, config, sites)
    assert max(m["loss"] for m in seen) < 1e-6
    assert_trees_close(after, original.params, atol=1e-6)


def test_a_window_over_all_tokens_is_attention_itself() -> None:
    original = teacher()
    wide = student(original, replace("blocks[*].mixer", "swa", window=16, init="transplant"))
    assert run(original, wide, 1)[1][0]["loss"] < 1e-5
    narrow = student(original, replace("blocks[*].mixer", "swa", window=2, init="transplant"))
    assert run(original, narrow, 1)[1][0]["loss"] > 1e-2


def test_self_grafting_learns() -> None:
    original = teacher()
    grafted = student(original, replace("blocks[0,2].mixer", "mha"), replace("blocks[1].mlp", "mlp"))
    _, seen, _ = run(original, grafted, 200)
    losses = [m["loss"] for m in seen]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_noise_and_times_are_fresh_each_step() -> None:
    original = teacher()
    grafted = mixed(original)
    sites = select(grafted.meta.sites, grafted.spec)
    step = make_distill_step(original.spec, grafted.spec, sites, PROCESS, FAST)
    prepared = Teacher(original.spec, group_sites(grafted.spec, sites), PROCESS, FAST).prepare(original.params)

    def loss(key: int) -> float:
        state = create_state(grafted.spec, grafted.params, sites, FAST)
        return float(step(state, prepared, batch(0), jax.random.key(key))[1]["loss"])

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_true_classes_are_used() -> None:
    original = teacher()
    grafted = mixed(original)
    sites = select(grafted.meta.sites, grafted.spec)
    step = make_distill_step(original.spec, grafted.spec, sites, PROCESS, FAST)
    source = Teacher(original.spec, group_sites(grafted.spec, sites), PROCESS, FAST)
    table = original.params["y_embedder"]["embedding"]
    # Rows of classes that are not in the batch, null class included, are spoilt: nothing may read them.
    data = {**batch(0), "label": np.full(8, 3, np.int32)}
    spoilt = jnp.full_like(table, jnp.nan).at[3].set(table[3])
    prepared = source.prepare({**original.params, "y_embedder": {"embedding": spoilt}})
    state = create_state(grafted.spec, grafted.params, sites, FAST)
    assert float(step(state, prepared, data, jax.random.key(0))[1]["finite"]) == 1


@pytest.mark.parametrize("spoil", ["image", "scion"])
def test_a_step_that_is_not_finite_changes_nothing(spoil: str) -> None:
    original = teacher()
    grafted = mixed(original)
    data = batch(0)
    if spoil == "image":
        data["image"][2] = np.nan
    else:  # one site alone is bad; the others must not move either
        blocks = grafted.params["blocks"]
        swa = {**blocks["02"], "mixer": jax.tree.map(lambda a: jnp.full_like(a, jnp.inf), blocks["02"]["mixer"])}
        params = {**grafted.params, "blocks": {**blocks, "02": swa}}
        grafted = grafted.replace(params=params)
    sites = select(grafted.meta.sites, grafted.spec)
    step = make_distill_step(original.spec, grafted.spec, sites, PROCESS, FAST)
    prepared = Teacher(original.spec, group_sites(grafted.spec, sites), PROCESS, FAST).prepare(original.params)
    before = jax.device_get(create_state(grafted.spec, grafted.params, sites, FAST))
    after, metrics = step(create_state(grafted.spec, grafted.params, sites, FAST), prepared, data, jax.random.key(0))
    assert float(metrics["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)


def test_the_state_holds_scions_only_and_the_teacher_survives_the_step() -> None:
    original = teacher()
    grafted = mixed(original)
    state, _, _ = run(original, grafted, 2)
    held = sum(x.size for x in jax.tree.leaves(state))
    scions = sum(
        x.size for name in grafted.meta.sites for s in select(name, grafted.spec)
        for x in jax.tree.leaves(grafted.params["blocks"][f"{s.block:02d}"][s.slot])
    )  # fmt: skip
    assert 3 * scions <= held <= 3 * scions + 20
    assert not any(x.is_deleted() for x in jax.tree.leaves((original.params, grafted.params)))


def test_low_precision_trains_float32_weights() -> None:
    original = teacher()
    config = DistillConfig(steps=30, learning_rate=3e-3, dtype="bfloat16")
    state, seen, _ = run(original, mixed(original), 30, config)
    assert {x.dtype for x in jax.tree.leaves(state.scions)} == {jnp.dtype("float32")}
    assert seen[-1]["loss"] < seen[0]["loss"]
