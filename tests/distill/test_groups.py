import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import mixed, student, teacher

from graftax.blocks import Context
from graftax.distill import DistillConfig
from graftax.distill.groups import group_sites, install_scions, over_sites, stack_scions
from graftax.surgery import Site, replace
from graftax.surgery.select import select
from graftax.testing import assert_same_leaves


def test_equal_operators_of_one_slot_form_a_group() -> None:
    original = teacher()
    grafted = student(
        original, replace("blocks[1,3].mixer", "hyena_x"), replace("blocks[2].mixer", "hyena_x", kernel=3),
        replace("blocks[*].mlp", "mlp"),
    )  # fmt: skip
    groups = group_sites(grafted.spec, select(grafted.meta.sites, grafted.spec))
    assert sum(len(g.sites) for g in groups.values()) == len(grafted.meta.sites) == 7
    members = {(g.slot, g.op.option("kernel")): [s.block for s in g.sites] for g in groups.values()}
    assert members == {("mixer", 4): [1, 3], ("mixer", 3): [2], ("mlp", None): [0, 1, 2, 3]}
    assert sorted(name.split("_", 1)[1] for name in groups) == ["mixer_hyena_x", "mixer_hyena_x", "mlp_mlp"]


def test_stacking_and_installing_are_inverse_and_leave_the_rest_alone() -> None:
    original = teacher()
    grafted = mixed(original)
    groups = group_sites(grafted.spec, select(grafted.meta.sites, grafted.spec))
    stacks = stack_scions(grafted.params, groups)
    again = install_scions(grafted.params, groups, stacks)
    jax.tree.map(np.testing.assert_array_equal, again, grafted.params)
    moved = install_scions(grafted.params, groups, jax.tree.map(lambda a: a + 1, stacks))
    np.testing.assert_array_equal(
        moved["blocks"]["03"]["mixer"]["in_proj"]["bias"], grafted.params["blocks"]["03"]["mixer"]["in_proj"]["bias"] + 1
    )
    paths = [Site(b, s).path(grafted.spec) for b, s in ((1, "mixer"), (2, "mixer"), (3, "mixer"), (0, "mlp"))]
    assert_same_leaves(grafted.params, moved, paths)


def test_loss_of_a_group_follows_operator_and_config() -> None:
    grafted, x, context = mixed(teacher()), jnp.ones((2, 16, 48)), Context(jnp.zeros((2, 48)))
    groups = group_sites(grafted.spec, [Site(1, "mixer"), Site(0, "mlp")])
    params = stack_scions(grafted.params, groups)

    def losses(config: DistillConfig) -> dict[str, float]:
        target = jnp.zeros_like(x)
        return {
            g.slot: float(g.loss_fn(config)(jax.tree.map(lambda a: a[0], params[name]), context, x, target))
            for name, g in groups.items()
        }

    l1 = losses(DistillConfig(mixer_loss="l1", mlp_loss="l1"))
    l2 = losses(DistillConfig(mixer_loss="l2", mlp_loss="l2"))
    assert losses(DistillConfig()) == {"mixer": l1["mixer"], "mlp": l2["mlp"]}
    assert l1["mixer"] != l2["mixer"]
    small = losses(DistillConfig(mixer_loss="huber", mlp_loss="huber", huber_delta=1e-3))
    # With a small delta Huber is delta * L1.
    assert small == {name: pytest.approx(1e-3 * value, rel=0.05) for name, value in l1.items()}


@pytest.mark.parametrize("method", ["auto", "vmap", "map"])
def test_over_sites_maps_trees(method: str) -> None:
    stack = {"w": jnp.arange(6.0).reshape(3, 2)}
    found = over_sites(lambda p, x: ({"w": p["w"] * x}, p["w"].sum()), method)(stack, jnp.arange(3.0))
    np.testing.assert_array_equal(found[0]["w"], stack["w"] * jnp.arange(3.0)[:, None])
    np.testing.assert_array_equal(found[1], stack["w"].sum(1))
