import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import FAST, batch, student, teacher

from graftax.diffusion import Process
from graftax.distill import DistillConfig, DistillState, create_state, make_distill_step
from graftax.distill.groups import group_sites, install_scions
from graftax.distill.teacher import Teacher
from graftax.models import Model
from graftax.surgery import replace
from graftax.surgery.select import select
from graftax.testing import assert_trees_close

PROCESS = Process()


def original() -> Model:
    return teacher(depth=2)


@functools.cache
def grafted() -> Model:
    """Scions in both slots: a group of two sites, one of one."""
    return student(original(), replace("blocks[*].mixer", "hyena_x"), replace("blocks[0].mlp", "mlp"))


@functools.cache
def compiled(
    of: Model, model: Model, config: DistillConfig, names: tuple[str, ...], method: str = "auto"
) -> tuple[Any, Any]:
    """The step, and the prepared teacher; equal calls compile once."""
    sites = select(names, model.spec)
    prepared = Teacher(of.spec, group_sites(model.spec, sites), PROCESS, config).prepare(of.params)
    return make_distill_step(of.spec, model.spec, sites, PROCESS, config, method=method), prepared


def fresh(model: Model, config: DistillConfig = FAST, names: tuple[str, ...] = ()) -> DistillState:
    return create_state(model.spec, model.params, select(names or model.meta.sites, model.spec), config)


def run(
    of: Model, model: Model, steps: int, config: DistillConfig = FAST, names: tuple[str, ...] = (), method: str = "auto"
) -> tuple[DistillState, list[dict[str, float]], Any]:
    """The state after `steps` updates, the metrics of each, and the whole parameter tree with the scions in it."""
    names = names or model.meta.sites
    step, prepared = compiled(of, model, config, names, method)
    state, seen = fresh(model, config, names), []
    for i in range(steps):
        state, metrics = step(state, prepared, batch(i), jax.random.fold_in(jax.random.key(0), i))
        seen.append({name: float(value) for name, value in metrics.items()})
    groups = group_sites(model.spec, select(names, model.spec))
    return state, seen, install_scions(model.params, groups, state.scions)


# A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps. The clip is small
# enough to act, so that a norm taken over several sites would show.
SMOOTH = DistillConfig(steps=8, learning_rate=0.3, eps=0.1, grad_clip=0.05)


@pytest.mark.slow
def test_joint_training_equals_training_each_site_alone() -> None:
    model = grafted()
    _, seen, joint = run(original(), model, 8, SMOOTH)
    alone, losses, norms = model.params, [], []
    for name in model.meta.sites:
        _, metrics, trained = run(original(), model, 8, SMOOTH, (name,))
        (site,) = select(name, model.spec)
        key = model.spec.block_key(site.block)
        alone = {
            **alone,
            "blocks": {**alone["blocks"], key: {**alone["blocks"][key], site.slot: trained["blocks"][key][site.slot]}},
        }
        losses.append([m["loss"] for m in metrics])
        norms.append([m["grad_norm"] for m in metrics])
    assert_trees_close(joint, alone, rtol=1e-5, atol=1e-5)
    assert np.min(norms) > SMOOTH.grad_clip
    np.testing.assert_allclose([m["loss"] for m in seen], np.mean(losses, 0), rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in seen], np.max(norms, 0), rtol=1e-4)
    moved = joint["blocks"]["01"]["mixer"]["in_proj"]["kernel"] - model.params["blocks"]["01"]["mixer"]["in_proj"]["kernel"]
    assert float(jnp.abs(moved).max()) > 1e-3


@pytest.mark.slow
def test_vmap_and_map_agree() -> None:
    mapped, batched = (run(original(), grafted(), 5, SMOOTH, method=method)[0] for method in ("auto", "vmap"))  # CPU: map
    assert_trees_close(mapped, batched, rtol=1e-5, atol=1e-6)


def test_a_scion_that_already_is_the_teachers_operator_has_no_loss_and_stays() -> None:
    # The gradient of l1 is a sign however small the error, so only l2 lets a perfect scion rest.
    config = DistillConfig(learning_rate=1e-3, eps=1.0, mixer_loss="l2")
    _, seen, after = run(original(), original(), 3, config, ("blocks[*].mixer", "blocks[1].mlp"))
    assert max(m["loss"] for m in seen) < 1e-6
    assert_trees_close(after, original().params, atol=1e-6)


@pytest.mark.slow
def test_a_window_over_all_tokens_is_attention_itself() -> None:
    wide, narrow = (
        student(original(), replace("blocks[*].mixer", "swa", window=window, init="transplant")) for window in (16, 2)
    )
    assert run(original(), wide, 1)[1][0]["loss"] < 1e-5
    assert run(original(), narrow, 1)[1][0]["loss"] > 1e-2


@pytest.mark.slow
def test_self_grafting_learns() -> None:
    model = student(original(), replace("blocks[0].mixer", "mha"), replace("blocks[1].mlp", "mlp"))
    losses = [m["loss"] for m in run(original(), model, 200)[1]]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.slow
def test_noise_and_times_are_fresh_each_step() -> None:
    step, prepared = compiled(original(), grafted(), FAST, grafted().meta.sites)
    one, again, two = (float(step(fresh(grafted()), prepared, batch(0), jax.random.key(k))[1]["loss"]) for k in (1, 1, 2))
    assert one == again
    assert one != two


def test_true_classes_are_used() -> None:
    step, _ = compiled(original(), grafted(), FAST, grafted().meta.sites)
    source = Teacher(
        original().spec, group_sites(grafted().spec, select(grafted().meta.sites, grafted().spec)), PROCESS, FAST
    )
    table = original().params["y_embedder"]["embedding"]
    # Rows of classes that are not in the batch, null class included, are spoilt: nothing may read them.
    spoilt = jnp.full_like(table, jnp.nan).at[3].set(table[3])
    prepared = source.prepare({**original().params, "y_embedder": {"embedding": spoilt}})
    data = {**batch(0), "label": np.full(8, 3, np.int32)}
    assert float(step(fresh(grafted()), prepared, data, jax.random.key(0))[1]["finite"]) == 1


@pytest.mark.parametrize("spoil", ["image", "scion"])
def test_a_step_that_is_not_finite_changes_nothing(spoil: str) -> None:
    step, prepared = compiled(original(), grafted(), FAST, grafted().meta.sites)
    model, data = grafted(), batch(0)
    if spoil == "image":
        data["image"][2] = np.nan
    else:  # one site alone is bad; the others must not move either
        blocks = model.params["blocks"]
        bad = {**blocks["01"], "mixer": jax.tree.map(lambda a: jnp.full_like(a, jnp.inf), blocks["01"]["mixer"])}
        model = model.replace(params={**model.params, "blocks": {**blocks, "01": bad}})
    before = jax.device_get(fresh(model))
    after, metrics = step(fresh(model), prepared, data, jax.random.key(0))
    assert float(metrics["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)


def test_the_state_holds_scions_only_and_the_teacher_survives_the_step() -> None:
    model = grafted()
    state, _, _ = run(original(), model, 2)
    held = sum(x.size for x in jax.tree.leaves(state))
    scions = sum(
        x.size for site in select(model.meta.sites, model.spec)
        for x in jax.tree.leaves(model.params["blocks"][model.spec.block_key(site.block)][site.slot])
    )  # fmt: skip
    assert 3 * scions <= held <= 3 * scions + 20
    assert not any(x.is_deleted() for x in jax.tree.leaves((original().params, model.params)))


@pytest.mark.slow
def test_low_precision_trains_float32_weights() -> None:
    config = DistillConfig(steps=30, learning_rate=3e-3, dtype="bfloat16")
    state, seen, _ = run(original(), grafted(), 30, config)
    assert {x.dtype for x in jax.tree.leaves(state.scions)} == {jnp.dtype("float32")}
    assert seen[-1]["loss"] < seen[0]["loss"]
