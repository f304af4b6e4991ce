"""Collected blocks: the same weights, the same outputs and gradients under every plan, a tenth of the leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.models import Model, forward
from graftax.models.collect import collect, is_collected, one_block, spread
from graftax.spec import ModelSpec, Step
from graftax.testing import assert_trees_close, random_params, tiny_spec

INPUTS = jax.random.normal(jax.random.key(3), (2, 4, 4, 4)), jnp.array([5, 700]), {"y": jnp.array([0, 3])}


@functools.cache
def mixed() -> Model:
    """Hyena-X in blocks 1 and 2, a narrow MLP in 2; no weight at zero."""
    spec = tiny_spec(depth=3, input_size=4, hidden_size=16, num_heads=2, num_classes=3)
    edit = graftax.compose(graftax.replace("blocks[1,2].mixer", "hyena_x"), graftax.resize("blocks[2].mlp", 2.0))
    return Model(edit.on(spec), random_params(edit.on(spec), jax.random.key(0)))


def in_order(*order: int) -> ModelSpec:
    return mixed().spec.replace(program=tuple(Step((i,)) for i in order))


def test_spread_undoes_collect_bit_for_bit() -> None:
    spec, params = mixed().spec, mixed().params
    collected = collect(spec, params)
    assert is_collected(collected["blocks"])
    assert not is_collected(params["blocks"])
    assert set(collected["blocks"]) == {"dit"}
    held = collected["blocks"]["dit"]
    assert set(held) == {"adaln", "mixer", "mlp"}  # norms have no weights
    assert set(held["mixer"]) == {"0_mha", "1_hyena_x"}
    assert set(held["adaln"]) == {"0_adaln"}
    assert held["adaln"]["0_adaln"]["kernel"].shape == (3, 16, 96)
    assert held["mixer"]["1_hyena_x"]["in_proj"]["kernel"].shape == (2, 16, 48)
    # Of modulations 4 leaves fewer, of the two Hyenas 6, of the two equal MLPs 4.
    assert len(jax.tree.leaves(collected)) == len(jax.tree.leaves(params)) - 14
    assert_trees_close(spread(spec, collected), params, rtol=0, atol=0)
    assert spread(spec, params) is params
    assert_trees_close(one_block(spec, collected["blocks"], 2), one_block(spec, params["blocks"], 2), rtol=0, atol=0)


@functools.cache
def outcome(spec: ModelSpec, plan: str, collected: bool):
    """Loss and gradients, these in the plain arrangement."""
    params = collect(spec, mixed().params) if collected else mixed().params
    loss = lambda p: jnp.sum(forward(spec, p, *INPUTS, plan=plan)[0] ** 2)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(loss))(params)
    return value, spread(spec, grad)


ORDER = (2, 1, 1, 0)


@pytest.mark.parametrize(
    "plan", [*(pytest.param(plan, marks=pytest.mark.slow) for plan in ("unroll", "segments")), "kind_scan"]
)
def test_every_plan_reads_collected_blocks(plan: str) -> None:
    """In an order in which one block runs twice and rows are no slice of their stack."""
    (value, grad), (other, found) = outcome(in_order(*ORDER), "unroll", False), outcome(in_order(*ORDER), plan, True)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert_trees_close(found, grad, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_parallel_steps_read_collected_blocks() -> None:
    spec = mixed().spec.replace(program=(Step((0, 1)), Step((2, 1), "sum"), Step((2,), loops=2)))
    run = jax.jit(lambda params: forward(spec, params, *INPUTS)[0])
    plain = run(mixed().params)
    np.testing.assert_allclose(run(collect(spec, mixed().params)), plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())
