"""Operators and block kinds from outside of the package: each is one class and one line, and everything takes it."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax import blocks, ops
from graftax.blocks import BlockKind, Slot, resolve
from graftax.blocks.base import modulate, vectors
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.collect import collect, spread
from graftax.models.cost import count_params, flops
from graftax.models.library import Library
from graftax.models.stack import tap_names, tap_runs
from graftax.ops import Cost, Operator
from graftax.ops.base import OUT_HIDDEN
from graftax.spec import op
from graftax.surgery import graft, replace, reverse, select
from graftax.testing import assert_trees_close, random_params, tiny_spec


class Mean(Operator):
    """Every token gets gain * W times the mean of all."""

    gain: float = 1.0

    kind = "test_mean"
    axes: ClassVar = {"to_all/kernel": OUT_HIDDEN}
    readout = "to_all"

    @nn.compact
    def __call__(self, x):
        to_all = self.linear(self.width, self.width, bias=False).clone(name="to_all", parent=self)
        return self.gain * jnp.broadcast_to(to_all(x.mean(1, keepdims=True)), x.shape)

    def cost(self):
        return Cost(self.width**2, 2 * self.width**2)

    @classmethod
    def check(cls, op, sizes):
        if op.option("gain") <= 0:
            raise BadInput(f"test_mean gain: got {op.option('gain')}, expected a positive number")


class Parallel(BlockKind):
    """x + gate * (mixer(u) + mlp(u)), u = norm(x) * (1 + scale) + shift."""

    kind = "test_parallel"
    slots = (
        Slot("adaln", "modulation", parts=3), Slot("norm", "norm"), Slot("mixer", "mixer"), Slot("mlp", "channel")
    )  # fmt: skip

    def body(self, run, state, context, tap):
        shift, scale, gate = vectors(run["adaln"](), 3)
        u = modulate(run["norm"](state["img"]), shift, scale)
        outs = [tap(f"{slot}/out", run[slot](tap(f"{slot}/in", u))) for slot in ("mixer", "mlp")]
        return {"img": state["img"] + gate * sum(outs)}


@pytest.fixture(autouse=True, scope="module")
def registered():
    ops.register(Mean)
    blocks.register(Parallel)
    yield
    del ops.OPERATORS["test_mean"], ops.LEAF_AXES["to_all/kernel"], blocks.BLOCKS["test_parallel"]


@functools.cache
def mixed():
    """Two blocks of DiT's kind, three of the new one, another of DiT's; all but one of the three alike."""
    spec = tiny_spec(depth=3, hidden_size=16, num_heads=2)
    held = {"adaln": op("adaln"), "norm": op("rms_norm"), "mixer": op("test_mean", gain=2), "mlp": op("mlp", ratio=2)}
    new = resolve("test_parallel", spec.sizes, held)
    other = resolve("test_parallel", spec.sizes, {**held, "mixer": op("mha")})
    spec = spec.replace(blocks=(*spec.blocks[:2], new, new, other, spec.blocks[2]), program=())
    return Model(spec, random_params(spec, jax.random.key(0)))


X = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
T, Y = np.array([3, 700]), np.array([1, 10])
TAPS = ("block/out", "mixer/in", "mlp/out")


@functools.cache
def expected():
    return mixed().apply(X, T, Y, capture=TAPS, plan="unroll")


@pytest.mark.parametrize("plan", [pytest.param("segments", marks=pytest.mark.slow), "kind_scan"])
def test_every_plan_runs_them(plan):
    found = mixed().apply(X, T, Y, capture=TAPS, plan=plan)
    scale = float(jnp.abs(expected()[0]).max())
    np.testing.assert_allclose(found[0], expected()[0], atol=1e-5 * scale)
    assert_trees_close(found[1], expected()[1], rtol=1e-4, atol=1e-4)
    assert found[1]["mixer/in"].shape == (6, 2, 16, 16)


def test_scans_and_data_run_them():
    """Blocks all alike; and the program as data, in another order."""
    spec = mixed().spec.replace(blocks=mixed().spec.blocks[2:4], program=())
    alike = Model(spec, random_params(spec, jax.random.key(1)))
    outs = [alike.apply(X, T, Y, plan=plan)[0] for plan in ("unroll", "scan")]
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-5, atol=1e-5 * float(jnp.abs(outs[0]).max()))
    library, turned = Library((mixed().spec,)), graft(mixed(), reverse(1, 5))
    out = jax.jit(library.forward)(
        library.prepare(mixed().params), library.encode(turned.spec.program), X, T, {"y": jnp.asarray(Y)}
    )
    np.testing.assert_allclose(out, turned(X, T, Y), atol=1e-5 * float(jnp.abs(out).max()))


def test_their_costs_and_names():
    spec = mixed().spec
    assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(mixed().params))
    without = spec.replace(program=tuple(step for step in spec.program if step.blocks != (2,)))
    assert flops(spec) - flops(without) == 2 * 16 * 3 * 16 + 2 * 16 * 16 + 8 * 16 * 16 * 16
    operators = {"block/in", "mixer/in", "mixer/out", "mlp/in", "mlp/out", "block/out"}
    assert {name for name in tap_names(spec) if "norm" not in name} == operators
    assert tap_runs(spec, "mixer/in") == tuple(range(6))
    assert [str(site) for site in select("test_parallel[1:].mixer", spec)] == ["blocks[3].mixer", "blocks[4].mixer"]
    assert [str(site) for site in select("test_parallel[*].norm", spec)] == [f"blocks[{i}].norm" for i in (2, 3, 4)]
    assert [str(site) for site in select("blocks[test_mean].mixer", spec)] == ["blocks[2].mixer", "blocks[3].mixer"]


def test_collected_and_spread():
    spec, params = mixed().spec, mixed().params
    collected = collect(spec, params)
    assert set(collected["blocks"]) == {"dit", "test_parallel"}
    assert set(collected["blocks"]["test_parallel"]["mixer"]) == {"0_test_mean", "1_mha"}
    assert_trees_close(spread(spec, collected), params, rtol=0, atol=0)


def test_grafted_saved_and_loaded(tmp_path):
    student = graft(mixed(), replace("dit[0].mixer", "test_mean", gain=3), jax.random.key(0))
    student = graft(student, replace("test_parallel[*].mixer", "hyena_x"), jax.random.key(0))
    assert student.meta.edits[0] == "replace(dit[0].mixer, test_mean(gain=3), init=random)"
    assert student.meta.sites == tuple(f"blocks[{i}].mixer" for i in (0, 2, 3, 4))
    graftax.save(student, tmp_path)
    again = graftax.load(tmp_path)
    assert again.spec == student.spec
    assert_trees_close(again.params, student.params, rtol=0, atol=0)
    np.testing.assert_array_equal(again(X, T, Y), student(X, T, Y))
    with pytest.raises(BadInput, match="export: blocks of the kind 'test_parallel'"):
        graftax.export(student, tmp_path / "model.pt")
    spec = tiny_spec(depth=1, mixer=op("test_mean"))
    plain = Model(spec, random_params(spec, jax.random.key(0)))
    with pytest.raises(BadInput, match=r"test_mean\(gain=1\.0\): has no complete table of PyTorch names"):
        graftax.export(plain, tmp_path / "model.pt")


def test_what_they_cannot_be():
    with pytest.raises(BadInput, match=r"test_mean gain: got 0\.0"):
        graft(mixed(), replace("blocks[0].mixer", "test_mean", gain=0), jax.random.key(0))
    with pytest.raises(BadInput, match="adaln_shared: slots of 96 and of 48 features"):
        graft(mixed(), replace("blocks[*].adaln", "adaln_shared"), jax.random.key(0))
    with pytest.raises(BadInput, match=r"block kind 'test_parallel': no operator for the slot 'norm'"):
        resolve("test_parallel", mixed().spec.sizes, {"adaln": op("adaln")})
    with pytest.raises(BadInput, match=r"block kind 'test_parallel': no slot 'norm1', expected one of"):
        resolve("test_parallel", mixed().spec.sizes, {"norm1": op("layer_norm")})
    with pytest.raises(BadInput, match=r"block kind 'test_serial': not known, expected one of .*'test_parallel'"):
        resolve("test_serial", mixed().spec.sizes, {})


def test_names_and_axes_are_taken_once():
    assert ops.register(Mean) is Mean
    assert blocks.register(Parallel) is Parallel

    class Other(Operator):
        kind = "test_mean"

    class OtherAxes(Operator):
        kind = "test_axes"
        axes: ClassVar = {"to_all/kernel": ("hidden", None)}

    class OtherBlock(BlockKind):
        kind = "dit"
        slots = ()

        def body(self, run, state, context, tap):
            return state

    with pytest.raises(BadInput, match="operator 'test_mean': registered already as Mean"):
        ops.register(Other)
    with pytest.raises(BadInput, match=r"operator 'test_axes' axes of to_all/kernel"):
        ops.register(OtherAxes)
    with pytest.raises(BadInput, match="block kind 'dit': registered already as DiTBlock"):
        blocks.register(OtherBlock)
    assert "test_axes" not in ops.OPERATORS
