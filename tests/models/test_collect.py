"""Collected blocks: the same weights, the same outputs and gradients under every plan, a tenth of the leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.models import Model, dit_spec, forward, init
from graftax.models.collect import collect, is_collected, one_block, spread
from graftax.spec import Step
from graftax.testing import assert_trees_close

SPEC = dit_spec(input_size=4, patch_size=2, hidden_size=16, depth=4, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def mixed() -> Model:
    """Hyena-X in blocks 1 and 2, a narrow MLP in 3; no weight at zero."""
    model = Model(SPEC, init(SPEC, jax.random.key(0)))
    edit = graftax.compose(graftax.replace("blocks[1,2].mixer", "hyena_x"), graftax.resize("blocks[3].mlp", 2.0))
    model = graftax.graft(model, edit, jax.random.key(1))
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model.replace(params=tree.unflatten(moved))


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(3), (2, 4, 4, 4)), jnp.array([5, 700]), jnp.array([0, 3])


def test_spread_undoes_collect_bit_for_bit(mixed: Model) -> None:
    collected = collect(mixed.spec, mixed.params)
    assert is_collected(collected["blocks"])
    assert not is_collected(mixed.params["blocks"])
    assert set(collected["blocks"]["mixer"]) == {"0_mha", "1_hyena_x"}
    assert collected["blocks"]["mixer"]["1_hyena_x"]["in_proj"]["kernel"].shape == (2, 16, 48)
    assert len(jax.tree.leaves(collected)) == len(jax.tree.leaves(mixed.params)) - 24
    assert_trees_close(spread(mixed.spec, collected), mixed.params, rtol=0, atol=0)
    assert spread(mixed.spec, mixed.params) is mixed.params
    assert_trees_close(
        one_block(mixed.spec, collected["blocks"], 2), one_block(mixed.spec, mixed.params["blocks"], 2), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("plan", "order"), [("unroll", None), ("segments", None), ("kind_scan", None), ("kind_scan", (3, 1, 2, 2, 0))]
)
def test_every_plan_runs_either_arrangement_alike(mixed: Model, plan: str, order: tuple[int, ...] | None) -> None:
    spec = mixed.spec if order is None else mixed.spec.replace(program=tuple(Step((i,)) for i in order))

    @jax.jit
    def loss_and_grad(params):
        return jax.value_and_grad(lambda p: jnp.sum(forward(spec, p, *inputs(), plan=plan)[0] ** 2))(params)

    value, grad = loss_and_grad(mixed.params)
    other, collected_grad = loss_and_grad(collect(spec, mixed.params))
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert_trees_close(spread(spec, collected_grad), grad, rtol=1e-4, atol=1e-4)


def test_parallel_steps_read_collected_blocks(mixed: Model) -> None:
    spec = mixed.spec.replace(program=(Step((0, 1)), Step((2, 3), "sum"), Step((2,), loops=2)))
    plain = forward(spec, mixed.params, *inputs())[0]
    np.testing.assert_allclose(forward(spec, collect(spec, mixed.params), *inputs())[0], plain, rtol=1e-5, atol=1e-6)
