from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import batch, mixed, student, teacher

from graftax.diffusion import Process
from graftax.distill import DistillConfig
from graftax.distill.groups import group_sites, stack_scions
from graftax.distill.heldout import heldout_errors
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import replace
from graftax.surgery.select import select

CONFIG = DistillConfig()


def errors(
    of: Model, grafted: Model, size: int = 12, scale: float = 1.0, sites: Any = None, **options: int
) -> dict[str, float]:  # fmt: skip
    sites = select(sites or grafted.meta.sites, grafted.spec)
    groups = group_sites(grafted.spec, sites)
    evaluate = heldout_errors(of.spec, grafted.spec, sites, Process(), batch(7, size), CONFIG, **options)
    scions = jax.tree.map(lambda a: scale * a, stack_scions(grafted.params, groups))
    return evaluate(scions, Teacher(of.spec, groups, Process(), CONFIG).prepare(of.params))


def test_numbers_by_site_and_their_means() -> None:
    original = teacher()
    found = errors(original, mixed(original))
    sites = ["blocks[1].mixer", "blocks[3].mixer", "blocks[2].mixer", "blocks[0].mlp"]
    assert set(found) == {"loss", "error", *(f"{kind}/{site}" for kind in ("loss", "error") for site in sites)}
    for kind in ("loss", "error"):
        assert found[kind] == pytest.approx(np.mean([found[f"{kind}/{site}"] for site in sites]))
    assert found == errors(original, mixed(original))


@pytest.mark.slow
def test_silence_has_error_one_and_a_copy_none() -> None:
    original = teacher()
    assert errors(original, original, sites="blocks[*].mixer")["error"] < 1e-5
    silent = errors(original, original, sites="blocks[*].mixer", scale=0.0)
    assert silent["error"] == pytest.approx(1.0, abs=1e-6)
    assert silent["loss"] > 0.1


@pytest.mark.slow
def test_relative_error_is_over_the_whole_set_whatever_the_batch_size() -> None:
    original = teacher()
    one, many = (errors(original, mixed(original), batch_size=size) for size in (12, 4))
    assert many == {name: pytest.approx(value, rel=1e-5) for name, value in one.items()}
    assert errors(original, mixed(original), size=14, batch_size=4, seed=1) != one


def test_error_equals_its_definition() -> None:
    original = teacher()
    grafted = student(original, replace("blocks[2].mixer", "hyena_x"))
    sites = select(grafted.meta.sites, grafted.spec)
    (group,) = group_sites(grafted.spec, sites).values()
    seen = []

    class Spy(Process):
        def q_sample(self, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
            jax.debug.callback(lambda *a: seen.append([np.asarray(x) for x in a]), t, super().q_sample(x0, t, noise))
            return super().q_sample(x0, t, noise)

    data = batch(7, 10)
    evaluate = heldout_errors(original.spec, grafted.spec, sites, Spy(), data, CONFIG)
    prepared = Teacher(original.spec, {"g": group}, Process(), CONFIG).prepare(original.params)
    found = evaluate(stack_scions(grafted.params, {"0_mixer_hyena_x": group}), prepared)
    jax.effects_barrier()
    ((t, x_t),) = seen
    assert sorted(t) == [50 + 100 * i for i in range(10)]
    _, taps = original.apply(x_t, t, data["label"], capture=("mixer/in", "mixer/out"))
    x, target = taps["mixer/in"][2], taps["mixer/out"][2]
    module = group.operator(CONFIG)
    made = module.apply({"params": grafted.params["blocks"]["02"]["mixer"]}, x)
    expected = float(jnp.linalg.norm(made - target) / jnp.linalg.norm(target))
    assert found["error"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(float(jnp.abs(made - target).mean()), rel=1e-5)


def test_ill_fitting_sets_are_refused() -> None:
    original = teacher()
    grafted = mixed(original)
    sites = select(grafted.meta.sites, grafted.spec)
    for data in ({**batch(0), "label": np.zeros(3, np.int32)}, {"image": np.zeros((0, 8, 8, 4)), "label": np.zeros(0)}):
        with pytest.raises(BadInput, match="held-out set"):
            heldout_errors(original.spec, grafted.spec, sites, Process(), data, CONFIG)
