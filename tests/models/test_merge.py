"""Learned projections: their place in specs, parameters, costs and meshes, and every plan computes what `Step` defines."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.dit import variant
from graftax.blocks import Context, resolve_all
from graftax.errors import BadInput
from graftax.models import forward, init, param_shapes
from graftax.models.collect import collect
from graftax.models.cost import count_params, flops
from graftax.models.merge import mean_merge, project
from graftax.models.plans import PLANS, segments
from graftax.models.stack import apply_stack
from graftax.spec import ModelSpec, Step, op
from graftax.testing import assert_trees_close, random_params, tiny_spec
from graftax.train.sharding import MeshConfig, leaf_spec

PAIRS = tuple(Step((2 * j, 2 * j + 1), "project") for j in range(3))
KEY = jax.random.key(0)


def paired(program=PAIRS, depth=6):
    """Narrow blocks, every second of another kind, by default in pairs."""
    spec = tiny_spec(depth=depth, hidden_size=16, num_heads=2)
    blocks = tuple(b.with_op("mixer", op("swa", window=2)) if i % 2 else b for i, b in enumerate(spec.blocks))
    return resolve_all(spec.replace(blocks=blocks, program=program))


def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 8, 8, 4), np.float32), np.array([3.0, 900.0]), {"y": np.array([0, 10])}


def test_parameters_of_a_paired_xl2_are_the_papers():
    xl = variant("DiT-XL/2")
    spec = xl.replace(program=tuple(Step((2 * j, 2 * j + 1), "project") for j in range(14)))
    shapes = param_shapes(spec)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == count_params(spec) == 675_129_632 + 14 * (2 * 1152 * 1152 + 1152) == 712_304_672
    assert list(shapes["merges"]) == [f"{2 * j:02d}_{2 * j + 1:02d}" for j in range(14)]
    assert flops(spec) - flops(xl) == 14 * 2 * 256 * 2304 * 1152


def test_one_projection_per_tuple_of_blocks_and_json():
    spec = paired((Step((0, 1), "project"), Step((1, 0), "project"), Step((0, 1), "project", loops=2), Step((2, 3))))
    assert spec.merges == ((0, 1), (1, 0))
    assert set(param_shapes(spec)["merges"]) == {"00_01", "01_00"}
    assert ModelSpec.from_json(spec.to_json()) == spec
    with pytest.raises(BadInput, match="merge 'product', expected one of"):
        paired((Step((0, 1), "product"),))


@pytest.mark.slow
def test_fresh_projections_are_the_mean():
    spec = paired(PAIRS[:1], depth=2)
    fresh = jax.jit(init, static_argnums=0)(spec, KEY)["merges"]
    assert_trees_close(fresh["00_01"], mean_merge(spec, 2), atol=0)
    params = {**random_params(spec, KEY), "merges": fresh}
    mean = spec.replace(program=(Step((0, 1)),))
    both = jax.jit(lambda params: [forward(one, params, *inputs())[0] for one in (spec, mean)])(params)
    np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize(
    "step",
    [
        Step((0, 1, 3), "project", 2, 0.5),
        *(pytest.param(Step(blocks, "project"), marks=pytest.mark.slow) for blocks in ((0, 1), (1,))),
    ],
)
def test_a_step_is_its_definition(step):
    spec = paired((step,), depth=4)
    params = random_params(spec, KEY)
    rng = np.random.default_rng(1)
    x, context = rng.standard_normal((2, 16, 16), np.float32), Context(jnp.asarray(rng.standard_normal((2, 16), np.float32)))

    def run(program, x, **options):
        one = spec.replace(program=program)
        return apply_stack(one, params["blocks"], {"img": x}, context, merges=params["merges"], **options)

    alone = jax.jit(lambda x: [run((Step((i,)),), x, plan="unroll")[0]["img"] for i in step.blocks])
    state, taps = jax.jit(lambda x: run((step,), x, capture=("block/out",)))(x)
    p, rows = params["merges"][spec.merge_key(step.blocks)], []
    for _ in range(step.loops):
        outs = alone(x)
        rows += outs
        projected = np.concatenate(outs, -1) @ p["kernel"] + p["bias"]
        x = x + step.alpha * (projected - x)
    np.testing.assert_allclose(state["img"], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(taps["block/out"], np.stack(rows), rtol=1e-4, atol=1e-4)
    found = project(p, [{"img": jnp.asarray(out)} for out in rows[-len(step.blocks) :]])["img"]
    np.testing.assert_allclose(found, projected, atol=1e-4)


def test_where_pairs_are_cut():
    spec = paired()
    modes = {plan: [(s.mode, s.ids) for s in segments(spec, plan)] for plan in PLANS}
    unrolled = [("parallel", (0, 1)), ("parallel", (2, 3)), ("parallel", (4, 5))]
    assert modes.pop("unroll") == unrolled
    assert all(found == [("parallel_scan", (0, 1, 2, 3, 4, 5))] for found in modes.values())
    looped = spec.replace(program=tuple(dataclasses.replace(step, loops=2) for step in PAIRS))
    assert [(s.mode, s.ids) for s in segments(looped, "scan")] == unrolled
    turned = spec.replace(program=(PAIRS[0], Step((3, 2), "project"), PAIRS[2]))
    assert [s.mode for s in segments(turned, "scan")] == ["parallel"] * 3


@pytest.mark.slow
def test_scanned_pairs_equal_unrolled_ones():
    spec = paired(PAIRS[:2], depth=4)
    params = random_params(spec, KEY)

    @functools.partial(jax.jit, static_argnums=1)
    def outcome(params, plan):
        def loss(params):
            out, taps = forward(spec, params, *inputs(), plan=plan, capture=("block/out", "mlp/in"))
            return (out**2).sum() + sum((tap**2).mean() for tap in taps.values()), (out, taps)

        (_, seen), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return seen, grads

    expected = outcome(params, "unroll")
    assert_trees_close(outcome(params, "scan"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("merge", ["project", pytest.param("mean", marks=pytest.mark.slow)])
def test_scanned_pairs_of_collected_blocks(merge):
    spec = paired(tuple(dataclasses.replace(step, merge=merge) for step in PAIRS[:2]), depth=4)
    params = random_params(spec, KEY)
    run = jax.jit(lambda params, plan: forward(spec, params, *inputs(), plan=plan, capture=("mlp/in",)), static_argnums=1)
    found, expected = run(collect(spec, params), "segments"), run(params, "unroll")
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_program_does_not_grow_with_the_number_of_pairs():
    def lines(pairs):
        spec = tiny_spec(depth=2 * pairs, hidden_size=16, num_heads=2)
        spec = spec.replace(program=tuple(Step((2 * j, 2 * j + 1), "project") for j in range(pairs)))
        shapes = jax.eval_shape(lambda: collect(spec, jax.tree.map(lambda s: jnp.zeros(s.shape), param_shapes(spec))))
        x, c = jax.ShapeDtypeStruct((1, 16, 16), "float32"), jax.ShapeDtypeStruct((1, 16), "float32")

        def run(blocks, merges, x, c):
            return apply_stack(spec, blocks, {"img": x}, Context(c), merges=merges)[0]

        return len(jax.jit(run).lower(shapes["blocks"], shapes["merges"], x, c).as_text().splitlines())

    assert lines(8) - lines(4) < 0.1 * lines(4)


def test_kernels_on_a_mesh():
    mesh = MeshConfig(data=1, fsdp=2, tensor=2).abstract()
    assert leaf_spec(("merges", "00_01", "kernel"), (2304, 1152), mesh) == jax.sharding.PartitionSpec("tensor", "fsdp")
    assert leaf_spec(("ema", "merges", "00_01", "bias"), (1152,), mesh) == jax.sharding.PartitionSpec()
