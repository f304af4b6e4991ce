"""Learned projections: their place in specs, parameters, costs and meshes, and every plan computes what `Step` defines."""

import dataclasses

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model, init, param_shapes, variant
from graftax.models.collect import collect
from graftax.models.cost import count_params, flops
from graftax.models.dit import forward
from graftax.models.merge import mean_merge, project
from graftax.models.plans import PLANS, segments
from graftax.models.stack import apply_stack
from graftax.ops import resolve
from graftax.spec import ModelSpec, Step, merge_key, op
from graftax.testing import assert_trees_close, random_params, tiny_spec
from graftax.train.sharding import MeshConfig, leaf_spec

PAIRS = tuple(Step((2 * j, 2 * j + 1), "project") for j in range(3))
KEY = jax.random.key(0)


def paired(program=PAIRS, second="swa"):
    """Six narrow blocks, every second of another kind, in pairs."""
    spec = tiny_spec(depth=6, hidden_size=16, num_heads=2)
    other = resolve(op(second, window=2) if second == "swa" else op(second), "mixer", 16, 16, 2)
    blocks = tuple(dataclasses.replace(b, mixer=other) if i % 2 else b for i, b in enumerate(spec.blocks))
    return spec.replace(blocks=blocks, program=program)


def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 8, 8, 4), np.float32), np.array([3.0, 900.0]), np.array([0, 10])


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


def test_fresh_projections_are_the_mean():
    spec = paired()
    params = init(spec, KEY)
    assert_trees_close(params["merges"]["00_01"], mean_merge(2, 16), atol=0)
    params = random_params(spec, KEY)
    params["merges"] = {merge_key(ids): mean_merge(2, 16) for ids in spec.merges}
    mean = spec.replace(program=tuple(Step(step.blocks) for step in PAIRS))
    np.testing.assert_allclose(
        Model(spec, params)(*inputs()), Model(mean, {k: v for k, v in params.items() if k != "merges"})(*inputs()), atol=1e-5
    )


@pytest.mark.parametrize("step", [Step((0, 1), "project"), Step((0, 1, 3), "project", 2, 0.5), Step((1,), "project")])
def test_a_step_is_its_definition(step):
    spec = paired((step,))
    params = random_params(spec, KEY)
    rng = np.random.default_rng(1)
    x, c = rng.standard_normal((2, 16, 16), np.float32), rng.standard_normal((2, 16), np.float32)
    out, taps = apply_stack(spec, params["blocks"], x, c, merges=params["merges"], capture=("block/out",))
    p, rows = params["merges"][merge_key(step.blocks)], []
    for _ in range(step.loops):
        outs = [
            apply_stack(spec.replace(program=(Step((i,)),)), params["blocks"], x, c, plan="unroll")[0] for i in step.blocks
        ]
        rows += outs
        x = x + step.alpha * (np.concatenate(outs, -1) @ p["kernel"] + p["bias"] - x)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(taps["block/out"], np.stack(rows), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        project(p, rows[-len(step.blocks) :]),
        np.concatenate(rows[-len(step.blocks) :], -1) @ p["kernel"] + p["bias"],
        atol=1e-4,
    )


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


@pytest.mark.parametrize("merge", ["project", "mean"])
def test_scanned_pairs_equal_unrolled_ones(merge):
    spec = paired(tuple(dataclasses.replace(step, merge=merge) for step in PAIRS))
    params = random_params(spec, KEY)

    def outcome(params, plan):
        def loss(params):
            out, taps = forward(spec, params, *inputs(), plan=plan, capture=("block/out", "mlp/in"))
            return (out**2).sum() + sum((tap**2).mean() for tap in taps.values()), (out, taps)

        (_, seen), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return seen, grads

    expected = outcome(params, "unroll")
    assert_trees_close(outcome(params, "auto"), expected, rtol=1e-3, atol=1e-3)
    collected, _ = outcome(collect(spec, params), "auto")
    assert_trees_close(collected, expected[0], rtol=1e-4, atol=1e-4)


def test_the_program_does_not_grow_with_the_number_of_pairs():
    def lines(pairs):
        spec = tiny_spec(depth=2 * pairs, hidden_size=16, num_heads=2)
        spec = spec.replace(program=tuple(Step((2 * j, 2 * j + 1), "project") for j in range(pairs)))
        blocks, merges = (
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), part)
            for part in (collect(spec, random_params(spec, KEY))["blocks"], param_shapes(spec)["merges"])
        )
        x, c = jax.ShapeDtypeStruct((1, 16, 16), "float32"), jax.ShapeDtypeStruct((1, 16), "float32")
        run = lambda blocks, merges, x, c: apply_stack(spec, blocks, x, c, merges=merges)[0]  # noqa: E731
        return len(jax.jit(run).lower(blocks, merges, x, c).as_text().splitlines())

    assert lines(8) - lines(4) < 0.1 * lines(4)


def test_kernels_on_a_mesh():
    mesh = MeshConfig(data=1, fsdp=2, tensor=2).abstract()
    assert leaf_spec(("merges", "00_01", "kernel"), (2304, 1152), mesh) == jax.sharding.PartitionSpec("tensor", "fsdp")
    assert leaf_spec(("ema", "merges", "00_01", "bias"), (1152,), mesh) == jax.sharding.PartitionSpec()
